"""Plans as tables for people, on stderr."""

from rich.console import Console
from rich.table import Table


def print_plan(plan: dict) -> None:
  """One plan, line by line."""
  table = Table(title=_title(plan), show_header=False)
  for what, value, note in _lines(plan):
    table.add_row(what, value, note)
  Console(stderr=True).print(table)


def print_ranking(plans: list[dict]) -> None:
  """Plans of one pod, the best first."""
  has = plans[0]["hbm_gib_available"]
  title = f"{plans[0]['topology']}, {has:.1f} GiB a device: meshes compiled, the best first"
  table = Table(title=title, box=None, padding=(0, 1, 0, 0))
  for column in ("mesh", "remat", "GiB", "step", "MFU", "days", "cost"):
    table.add_column(column, no_wrap=True)
  for plan in plans:
    need = plan["hbm_gib_per_device"]
    room = f"{'?' if need is None else f'{need:.1f}'}{'' if plan['fits'] else ' no'}"
    if "step_seconds" not in plan:
      table.add_row(_mesh(plan), plan["remat"], room)
      continue
    cost = f"{plan['cost']:,.0f}" if "cost" in plan else ""
    table.add_row(
      _mesh(plan), plan["remat"], room, f"{plan['step_seconds']:.3g} s", _percent(plan["mfu"]),
      f"{plan['days']:.1f}", cost,
    )  # fmt: skip
  Console(stderr=True).print(table)


def _title(plan: dict) -> str:
  verdict = "fits" if plan["fits"] else "does not fit"
  return f"{plan['topology']}, {_mesh(plan)}, remat={plan['remat']}: {verdict}"


def _mesh(plan: dict) -> str:
  return " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "-"


def _percent(share: float | None) -> str:
  return "not told" if share is None else f"{share:.1%}"


def _lines(plan: dict):
  need, has = plan["hbm_gib_per_device"], plan["hbm_gib_available"]
  yield "memory a device", f"{'?' if need is None else need} GiB", f"of {has} GiB"
  for kind, size in plan["hbm_gib_by_kind"].items():
    if size >= 0.01:
      yield f"  {kind}", f"{size:.2f} GiB", ""
  if "step_seconds" not in plan:
    yield "refused", "", plan["refused"]
    return
  if plan["host_gib_per_device"]:
    yield "in the host's memory", f"{plan['host_gib_per_device']} GiB", "a device"
  yield "parameters", f"{plan['parameters'] / 1e9:.2f} B", f"attention: {plan['attention']}"
  yield "step", f"{plan['step_seconds']:.4g} s", f"bound by {plan['bottleneck']}"
  for part, seconds in sorted(plan["seconds_by_part"].items(), key=lambda entry: -entry[1]):
    if seconds > 0.001 * plan["step_seconds"]:
      yield f"  {part}", f"{seconds:.3g} s", ""
  hidden = plan["seconds_of_hidden_collectives"]
  if hidden:
    yield "  collectives beside work", f"{hidden:.3g} s", "not in the sum"
  useful = plan["attention_useful_share"]
  yield "attention inside segments", f"{useful:.1%}", "of what its blocks multiply"
  yield "model FLOPs", f"{plan['model_flops']:.3e}", f"{plan['tokens_per_step']:,} tokens a step"
  yield "MFU", _percent(plan["mfu"]), "an estimate, see assumptions"
  yield "HBM traffic", f"{plan['hbm_bytes'] / 1e12:.2f} TB", "a device and step; kernels' not"
  wire = plan["collective_bytes"]
  yield "wire a device and step", f"{wire['wire_gib']} GiB", "ring-equivalent"
  for what, size in wire["wire_gib_by_kind_and_axis"].items():
    yield f"  {what}", f"{size} GiB", ""
  yield "rows are full", f"{plan['fill']:.0%}", f"bound by {plan['fill_bound_by']}"
  yield "tokens a second", f"{plan['tokens_per_second']:,.0f}", ""
  tokens, chips = f"{plan['total_tokens']:.2e} tokens", f"{plan['chip_hours']:,.0f} chip-hours"
  yield "the whole run", f"{plan['days']:.1f} days", f"{chips}, {tokens}"
  if "cost" in plan:
    yield "cost", f"{plan['cost']:,.0f}", f"at {plan['price_per_chip_hour']} a chip and hour"
  saves = f"{plan['checkpoint_seconds']:.0f} s to write, beside the steps"
  yield "a checkpoint", f"{plan['checkpoint_gib']} GiB", saves
  yield "to compile", f"{plan['compile_seconds']} s", ""
  yield from _assumed(plan["assumptions"])


def _assumed(assumed: dict):
  attention = assumed["efficiency_of_attention"]
  yield "assumed: products", f"{assumed['efficiency_of_products']:.0%}", (
    f"of {assumed['peak_flops'] / 1e12:,.0f} TFLOP/s"
  )
  share = f"{attention['forward']:.0%}, {attention['backward']:.0%}"
  yield "assumed: attention", share, attention["source"]
  yield "assumed: HBM", f"{assumed['efficiency_of_hbm']:.0%}", (
    f"of {assumed['hbm_bytes_per_second'] / 1e12:.2f} TB/s"
  )
  yield "assumed: a link", f"{assumed['efficiency_of_links']:.0%}", (
    f"of {assumed['link_bytes_per_second'] / 1e9:.0f} GB/s one way"
  )
  for name, case in assumed["published_cases"].items():
    yield f"published: {name}", f"{case['measured_seconds']} s", (
      f"the estimator says {case['estimated_seconds']} s"
    )
