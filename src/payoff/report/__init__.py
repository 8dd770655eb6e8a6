"""What was found, shown: one figures object, printed to a terminal, to HTML and to a notebook."""
