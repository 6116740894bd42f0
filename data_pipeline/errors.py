"""The one exception for what a user can mend: bad input, a bad setting, a damaged file."""


class BadInput(ValueError):
  """Bad input from outside. The command line prints it as one line and exits with code 2.

  The text says `where: name=value breaks which rule (context). What to do.`
  """
