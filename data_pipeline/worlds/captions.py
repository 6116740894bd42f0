"""Exact captions: several wordings that say what can be seen in this clip, and no more.

Every caption names each object's colour and shape, and the direction whenever the clip shows one.
"""

_TOWARDS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
_FROM = {"left": "from the right", "right": "from the left", "up": "from below", "down": "from above"}
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
  where = {
    "ramp": "on a ramp",
    "occlude": f"next to {_article(attributes['scenery'] + ' bar')}",
  }.get(attributes["family"], f"on {_backdrop(attributes)}")
  names = [f"{o['size']} {o['colour']} {o['shape']}" for o in attributes["objects"]]
  plain = [f"{o['colour']} {o['shape']}" for o in attributes["objects"]]
  both = " and ".join(_article(name) for name in names)
  if len(names) == 2:
    where = f"on {_backdrop(attributes)}"
    return [
      both, f"{both} {where}", f"{plain[0]} and {plain[1]}",
      f"there are {_article(plain[0])} and {_article(plain[1])} {where}",
    ]
  return [
    both, f"{both} {where}", f"{_article(plain[0])}, {one['size']}, on {_backdrop(attributes)}",
    f"there is {_article(plain[0])} {where}", f"{plain[0]} {where}",
  ]


def _drift(attributes: dict) -> list[str]:
  one, hits = attributes["objects"][0], attributes["events"]["bounces_ahead"]
  size, thing, way = one["size"], f"{one['colour']} {one['shape']}", one["direction"]
  wall = {"up": "top edge", "down": "bottom edge"}.get(way, f"{way} edge")
  end = "" if not hits else f", then bounces off the {wall}" if hits == 1 else ", bouncing back and forth"
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
    f"{_article(thing)}, {size}, falling down under gravity{floor}",
    f"the {size} {thing} falls {_FROM['down']}{floor}",
  ]


def _ramp(attributes: dict) -> list[str]:
  one, hits = attributes["objects"][0], attributes["events"]["bounces"]
  size, thing, way = one["size"], f"{one['colour']} {one['shape']}", one["direction"]
  verbs, gerund = ("rolls", "rolling") if one["shape"] == "circle" else ("slides", "sliding")
  end = " and bounces back" if hits else ""
  return [
    f"{thing} {verbs} down a ramp {_TOWARDS[way]}{end}",
    f"a {size} {thing} {verbs} down {_TOWARDS[way]}{end}",
    f"{_article(thing)} {verbs} {way} down {_article(attributes['scenery'] + ' ramp')}{end}",
    f"{_article(thing)}, {size}, {gerund} down a slope {_TOWARDS[way]}{end}",
    f"a ramp with a {size} {thing} {gerund} {way}{end} on {_backdrop(attributes)}",
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
  return [
    f"{thing} {verb.format(way)} {bar}{end}",
    f"a {size} {thing} {verb.format(way)} {bar}{end}",
    f"{_article(thing)} {verb.format(_TOWARDS[way])} {bar} on {_backdrop(attributes)}{end}",
    f"{_article(thing)}, {size}, {gerund.format(_TOWARDS[way])} {bar}{end}",
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
  end = " and they bounce apart" if hit and not rest else ""
  whole = f"the {second} is at rest" if rest else f"the {second} moves {b['direction']}"
  return [
    f"{first} moving {a['direction']} {verb} {_article(target + second)}{coming}",
    f"a {a['size']} {first} moving {a['direction']} {verb} a {target}{b['size']} {second}{coming}",
    f"{_article(first)} moves {_TOWARDS[a['direction']]}, {gerund} {_article(target + second)}{coming}{end}",
    f"the {first} moves {a['direction']}, {whole}" + (", they collide" if hit else ""),
    f"on {_backdrop(attributes)} {_article(first)} moves {a['direction']} and {verb} "
    f"{_article(target + second)}{coming}",
  ]


_WORDINGS = {"drift": _drift, "fall": _fall, "collide": _collide, "occlude": _occlude, "ramp": _ramp}


def write_captions(attributes: dict) -> tuple[str, ...]:
  """All wordings for a clip's attributes (`physworld.Description.attributes`), short and long, lower case."""
  moves = any(one["direction"] is not None for one in attributes["objects"])
  return tuple((_WORDINGS[attributes["family"]] if moves else _still)(attributes))
