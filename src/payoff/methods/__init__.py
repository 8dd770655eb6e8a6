"""One file for each question asked. A method declares what it needs and answers from it; it never reads a table itself."""
