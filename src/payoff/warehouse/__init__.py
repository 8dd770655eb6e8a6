"""The only code that speaks SQL. Declared needs in, Arrow or Moments out."""
