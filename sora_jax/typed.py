"""Array types and trace-time shape checks, used on public signatures.

`@typed` binds the dimension names of one call together, so that a mismatch is an error when the
function is traced, at no cost in the compiled program.
"""

from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt, jaxtyped

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "UInt", "typed"]


def typed(function):
  """Checks shapes and dtypes of arguments and result each time `function` is called or traced."""
  return jaxtyped(typechecker=beartype)(function)
