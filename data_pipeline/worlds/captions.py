"""Exact captions: several wordings that say what can be seen in this clip, and no more.

Every caption names each object's colour and shape, and the direction whenever the clip shows one.
"""

_TOWARDS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
_STYLES = {
  "solid": "plain",
  "gradient": "shaded",
  "checker": "checkered",
  "stripes": "striped",
  "noise": "cloudy",
}


def _article(words: str) -> str:
  return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _times(count: int) -> str:
  return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _backdrop(attributes: dict) -> str:
  background = attributes["background"]
  return _article(f"{_STYLES[background['style']]} {background['tone']} background")


def _still(attributes: dict) -> list[str]:
  """For images, and for clips too short to show the motion."""
  one = attributes["objects"][0]
  where = f"on {_backdrop(attributes)}"
  names = [f"{o['size']} {o['colour']} {o['shape']}" for o in attributes["objects"]]
  plain = [f"{o['colour']} {o['shape']}" for o in attributes["objects"]]
  both = " and ".join(_article(name) for name in names)
  if len(names) == 2:
    return [
      both,
      f"{both} {where}",
      f"{plain[0]} and {plain[1]}",
      f"two shapes {where}, {_article(plain[0])} and {_article(plain[1])}",
    ]
  if attributes["family"] == "ramp":
    where = f"on {_article(attributes['scenery'] + ' ramp')}"
  if attributes["family"] == "occlude":
    where = f"next to {_article(attributes['scenery'] + ' bar')}"
  return [
    both,
    f"{both} {where}",
    f"{_article(plain[0])}, {one['size']}, on {_backdrop(attributes)}",
    f"there is {_article(plain[0])} {where}",
    f"{plain[0]} {where}",
  ]


def _drift(attributes: dict) -> list[str]:
  one, hits = attributes["objects"][0], attributes["events"]["bounces_ahead"]
  size, thing, way = one["size"], f"{one['colour']} {one['shape']}", one["direction"]
  wall = {"up": "top edge", "down": "bottom edge"}.get(way, f"{way} edge")
  ends = ("", f", then bounces off the {wall}", ", bouncing back and forth")
  end = ends[min(hits, 2)]
  return [
    f"{thing} drifts {way}{end}",
    f"a {size} {thing} drifts {way}{end}",
    f"{_article(thing)} moves {_TOWARDS[way]} on {_backdrop(attributes)}{end}",
    f"{_article(thing)}, {size}, moving {_TOWARDS[way]}{end}",
    f"the {size} {thing} glides {way} across {_backdrop(attributes)}{end}",
  ]


def _fall(attributes: dict) -> list[str]:
  one, hits = attributes["objects"][0], attributes["events"]["bounces"]
  size, thing = one["size"], f"{one['colour']} {one['shape']}"
  end = f" and bounces {_times(hits)}" if hits else ""
  floor = f" and bounces off the floor {_times(hits)}" if hits else ""
  return [
    f"{thing} falls down{end}",
    f"a {size} {thing} falls down{floor}",
    f"{_article(thing)} drops down on {_backdrop(attributes)}{end}",
    f"{_article(thing)}, {size}, falling down under gravity{floor.replace('bounces', 'bouncing')}",
    f"the {size} {thing} falls from above{floor}",
  ]


def _ramp(attributes: dict) -> list[str]:
  one, hits = attributes["objects"][0], attributes["events"]["bounces"]
  size, thing, way = one["size"], f"{one['colour']} {one['shape']}", one["direction"]
  verbs, gerund = ("rolls", "rolling") if one["shape"] == "circle" else ("slides", "sliding")
  end = " and bounces back" if hits else ""
  ending = end.replace("bounces", "bouncing")
  ramp = _article(f"{attributes['scenery']} ramp")
  return [
    f"{thing} {verbs} {way} down a ramp{end}",
    f"a {size} {thing} {verbs} down {_TOWARDS[way]}{end}",
    f"{_article(thing)} {verbs} down {ramp} {_TOWARDS[way]}{end}",
    f"{_article(thing)}, {size}, {gerund} down a slope {_TOWARDS[way]}{ending}",
    f"a {size} {thing} {gerund} {way} on {ramp}, on {_backdrop(attributes)}",
  ]


def _occlude(attributes: dict) -> list[str]:
  one, events = attributes["objects"][0], attributes["events"]
  size, thing, way = one["size"], f"{one['colour']} {one['shape']}", one["direction"]
  bar = _article(f"{attributes['scenery']} bar")
  if not events["hidden"]:
    verb, gerund = "moves {} towards", "moving {} towards"
  elif not events["emerged"]:
    verb, gerund = "moves {} and disappears behind", "moving {} and disappearing behind"
  else:
    verb, gerund = "moves {} and passes behind", "moving {}, passing behind"
  end = " and bounces back" if events["bounces"] else ""
  ending = end.replace("bounces", "bouncing")
  return [
    f"{thing} {verb.format(way)} a bar{end}",
    f"a {size} {thing} {verb.format(way)} {bar}{end}",
    f"{_article(thing)} {verb.format(_TOWARDS[way])} {bar} on {_backdrop(attributes)}",
    f"{_article(thing)}, {size}, {gerund.format(_TOWARDS[way])} {bar}{ending}",
  ]


def _collide(attributes: dict) -> list[str]:
  moving = sorted(attributes["objects"], key=lambda o: o["heading"] is None)
  a, b = moving
  first, second = (f"{o['colour']} {o['shape']}" for o in moving)
  hit = attributes["events"]["collisions"] > 0
  rest = b["heading"] is None
  verb, gerund = ("hits", "hitting") if hit else ("approaches", "approaching")
  target = "resting " if rest else ""
  coming = "" if rest else f" moving {b['direction']}"
  whole = f"the {second} is at rest" if rest else f"the {second} moves {b['direction']}"
  return [
    f"{first} moving {a['direction']} {verb} {_article(target + second)}{coming}",
    f"a {a['size']} {first} moving {a['direction']} {verb} a {target}{b['size']} {second}{coming}",
    f"{_article(first)} moves {_TOWARDS[a['direction']]}, {gerund} {_article(target + second)}"
    f"{coming}",
    f"the {first} moves {a['direction']}, {whole}" + (" until they collide" if hit else ""),
    f"on {_backdrop(attributes)} {_article(first)} moves {a['direction']} and {verb} "
    f"{_article(target + second)}{coming}",
  ]


_WORDINGS = {
  "drift": _drift,
  "fall": _fall,
  "collide": _collide,
  "occlude": _occlude,
  "ramp": _ramp,
}


def write_captions(attributes: dict) -> tuple[str, ...]:
  """All wordings, short and long, for the attributes of a `physworld.Description`."""
  moves = any(one["direction"] is not None for one in attributes["objects"])
  return tuple((_WORDINGS[attributes["family"]] if moves else _still)(attributes))
