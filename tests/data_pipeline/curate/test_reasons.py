"""Every reason that the code gives has its words."""

import ast
from pathlib import Path

from data_pipeline.curate import endpoint, reasons, scores, windows

PLACES = {"Refused": 0, "ChildFailed": 0, "Reject": 2, "Loss": 2}  # of the reason
FOLDER = Path(reasons.__file__).parent


def given_reasons() -> set[str]:
  found = set()
  for path in FOLDER.glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        place = PLACES.get(node.func.id)
        if place is not None and place < len(node.args):
          found |= set(texts_of(node.args[place]))
      if isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "reason" for target in node.targets
      ):
        found |= set(texts_of(node.value))
  return found


def texts_of(node: ast.expr) -> list[str]:
  """The constant itself, or those that a condition chooses from."""
  if isinstance(node, ast.IfExp):
    return texts_of(node.body) + texts_of(node.orelse)
  return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_reason_has_words():
  found = given_reasons()
  assert {"not_video", "damaged", "timeout", "symlink", "listed_twice"} <= found
  judged = {reason for pair in scores.REASONS.values() for reason in pair}
  named = {windows.TOO_SHORT, windows.TRANSITION, endpoint.FAILED, scores.SMALL, "duplicate"}
  assert found | judged | named <= reasons.MEANINGS.keys()
