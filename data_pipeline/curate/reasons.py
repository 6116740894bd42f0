"""Says in words what became no record: every reason of `rejects.jsonl`, and what to do about it."""

from collections.abc import Mapping

MEANINGS = {
  # what is listed
  "bad_side_car": "a file of captions beside it cannot be read",
  "listed_twice": "named more than once; the first one counts",
  "not_a_file": "a pipe, a device or a folder",
  "not_found": "not there; --append tries again",
  "stray_captions": "captions, and no video of their name",
  "symlink": "links are not followed: name the files in a list",
  "unread_list": "a list inside a folder: give it as --input",
  "unreadable": "could not be read; --append tries again",
  # archives
  "bomb": "unpacks, or decodes, to far more than its size allows",
  "not_an_archive": "its name says tar, its content does not",
  "truncated": "ends too early",
  # files and streams
  "alpha": "its transparency lies where it cannot be read",
  "broken_timestamps": "its times make no sequence of frames",
  "colours": "its colours have no known meaning",
  "damaged": "cannot be decoded, or not to its end",
  "dropped_frames": "frames share a place with another at its rate; the last of them is kept",
  "empty": "holds nothing",
  "held": "one frame is shown for longer than decode.max_held_seconds",
  "more_pictures": "only the primary picture of the file is read",
  "more_streams": "only the best video stream of the file is read",
  "no_decoder": "its codec is not known here",
  "no_video": "has no video, only sound or the like",
  "not_video": "no video and no picture",
  "reaches_out": "asks for other files, which is not allowed",
  "size_change": "frames change size too often",
  "unread": "another file begins within it: split it there",
  # bounds
  "crashed": "its process ended; --append tries again",
  "memory": "took more than decode.memory_bytes",
  "timeout": "took longer than decode.timeout_seconds; --append tries again",
  "too_large": "more pixels or bytes than decode allows",
  "too_long": "longer than decode.max_seconds",
  "too_many_frames": "more than decode.max_frames",
  # windows
  "trimmed": "beside a cut, where frames may be mixed: windows.trim_seconds",
  "too_short": "shorter than windows.min_seconds",
  "transition": "frames of a gradual transition between shots",
  # scores: below the minimum, above the maximum
  "static": "below scores.motion.min",
  "restless": "above scores.motion.max",
  "blurred": "below scores.sharpness.min",
  "noisy": "above scores.sharpness.max",
  "dark": "below scores.brightness.min",
  "glaring": "above scores.brightness.max",
  "flat": "below scores.contrast.min",
  "harsh": "above scores.contrast.max",
  "no_bars": "below scores.letterbox.min",
  "letterboxed": "above scores.letterbox.max, the share of black bars",
  "small_picture": "between its black bars: below scores.letterbox.min_side",
  "no_text": "below scores.text.min",
  "text": "above scores.text.max",
  "safe": "below scores.nsfw.min",
  "nsfw": "above scores.nsfw.max",
  "unaesthetic": "below scores.aesthetic.min",
  "too_aesthetic": "above scores.aesthetic.max",
  # what other clips and captions say
  "duplicate": "a copy of another clip, which stays",
  "caption_failed": "the captioner gave no caption; the next run asks again",
}


def sum_up(counts: Mapping[str, int]) -> list[str]:
  """A line a reason, the most frequent first: how many rows, the reason, and what it means."""
  rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
  width = max((len(reason) for reason in counts), default=0)
  digits = max((len(f"{count:,}") for count in counts.values()), default=0)
  return [
    f"  {count:>{digits},}  {reason:{width}}  {MEANINGS.get(reason, 'see its detail')}".rstrip()
    for reason, count in rows
  ]
