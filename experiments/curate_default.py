r"""Raw videos to clip records: the settings of every stage, with their units and reasons.

  sora curate --config=experiments/curate_default.py --input=VIDEOS --out=data/clips
  sora curate --config=experiments/curate_default.py --input=VIDEOS --out=data/clips \
    --config.curate.windows.max_seconds=8 --config.curate.scores.text.max=0.05
  sora curate --config=experiments/curate_default.py:debug ...   # small, without text and nsfw

A limit is switched off by inf or -inf, a score by measure=False. Captions come from side-car files;
an endpoint is asked for more with curate_default.py:ask and --config.curate.captions.chat.base_url.
Expected: not run yet.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "default") -> ConfigDict:
  c = ConfigDict()
  c.curate = dict(
    sources=sources(),
    decode=decode(),
    shots=shots(),
    windows=windows(),
    scores=scores(is_fast=arg == "debug"),
    near=near(),
    captions=captions(prompts=PROMPTS if arg == "ask" else ()),
    write=write(),
  )
  if arg == "debug":
    c.curate.windows.min_seconds = 0.5
    c.curate.write.shard_bytes = 2**20
  elif arg not in ("default", "ask"):
    raise ValueError(f"curate_default: {arg!r} is unknown. Use default, ask or debug.")
  return c.lock()


def sources() -> dict:
  """How the input is read."""
  return dict(
    # Columns of lists and keys of side-cars that hold captions, apart by commas; "" for those that
    # the field uses (docs/data.md), "none" for none.
    caption_columns="",
  )


def decode() -> dict:
  """Bounds of one source; beyond them it is rejected, and the job goes on."""
  return dict(
    # Wall clock: so many seconds, and more for every megabyte of the file. One core takes about
    # 100 s for a minute of 720p, up to 20 minutes for one of 4k; where no size is known, 4 hours.
    timeout_seconds=600.0,
    timeout_seconds_per_megabyte=120.0,
    memory_bytes=4 * 2**30,  # RSS of the child process; 4k takes 0.9 GiB
    max_side=8192,  # pixels
    max_pixels=8192 * 4320,  # of a frame: 8k
    # Of all frames together: 5e9 are 3.6 minutes of 720p, whatever the file's size, and a video
    # of slides at 100 kbit/s has 5,000 a byte. Beyond that a file is a bomb.
    free_pixels=5e9,
    pixels_per_byte=20_000.0,
    max_seconds=4 * 3600.0,
    max_frames=1_000_000,
    max_fps=120.0,  # faster sources are not rejected, their rate is divided
    max_gap_seconds=60.0,  # a longer leap in time begins another recording in the same file
    max_held_seconds=2.0,  # that one frame may be shown: what is held longer is left out
  )


def shots() -> dict:
  """Where the cuts are."""
  return dict(
    # Chosen by experiments/benchmarks/cuts.py. Others: adaptive and content, as in PySceneDetect;
    # transnetv2, which sees dissolves too, at 27 ms a frame: pip install --no-deps it.
    detector="flow",
    # What no motion explains of a frame after a cut, a share of the picture's contrast. adaptive
    # 3.0 and content 27.0 are PySceneDetect's own, transnetv2 0.5 that of its paper.
    threshold=0.3,
    min_content=15.0,  # grey levels of 255 that a cut changes at least; adaptive only
    min_seconds=0.0,  # a cut sooner after another is none
    side=256,  # pixels of the frames that cuts and motion are looked for in
  )


def windows() -> dict:
  """How shots become clips."""
  return dict(
    min_seconds=2.0,  # of 130 shots of a film (Big Buck Bunny) 80 are as long
    max_seconds=20.0,  # longer shots are split evenly
    overlap_seconds=0.0,
    trim_seconds=0.1,  # at cuts, where codecs and editors mix frames
  )


def scores(is_fast: bool) -> dict:
  """What is measured, and which clips go."""
  return dict(
    frames=5,  # of a clip that are looked at one by one
    side=640,  # pixels of their longer side
    # 0.002 diagonals a second is a pixel in 2 s at 256 pixels, where noise begins; a still picture
    # has 0. Above 0.7 a frame's content is gone within two seconds: cuts that were missed, shaking.
    motion=dict(limits(min=0.002, max=0.7), min_camera=0.004),
    sharpness=limits(min=10.0),  # squared grey levels at 640 pixels; in focus is above 100
    brightness=limits(min=0.04, max=0.96),  # 0..1: black and white screens
    contrast=limits(min=0.02),  # 0..0.5: empty frames
    # Bars are cut off, so their share tells little: a 9:16 video in 16:9 has 68 % of them, a
    # picture of a third of each side 89 %. With 95 % it is a logo on black. A side of 16 pixels is
    # a patch of a VAE of factor 8: less cannot be encoded. 16 is also black in limited range.
    letterbox=dict(limits(max=0.95), crop=True, min_side=16, max_luma=24.0),
    # The field's curators keep clips with up to 20 % of the frame under writing.
    text=dict(limits(max=0.2, measure=not is_fast), side=480),
    # Probability: above 0.8 is "NSFW with high probability" by open_nsfw's authors, who speak of
    # photographs; in drawn and rendered films it takes bare skin for it.
    nsfw=limits(max=0.8, measure=not is_fast),
    # LAION's predictors give 1 to 10; the field asks for 4.75 at least.
    aesthetic=dict(limits(measure=False), encoder="", head=""),
  )


def limits(min: float | None = None, max: float | None = None, measure: bool = True) -> dict:
  """Of one score; None is no limit, and can be set on the command line as well."""
  low, high = config_dict.placeholder(float), config_dict.placeholder(float)
  return dict(measure=measure, min=low if min is None else min, max=high if max is None else max)


def near() -> dict:
  """Copies of the same clip in several sources: the best one stays."""
  return dict(
    remove=True,
    max_distance=6.0,  # of 64 bits, a mean over frames: copies have 0 to 4, others 15 up
    within_source=False,  # True also removes windows of a shot in which little moves
  )


PROMPTS = (
  dict(
    name="short",
    text="Describe this video in one short sentence: who or what is seen, and what happens.",
    max_characters=300,
  ),
  dict(
    name="long",
    text=(
      "Describe this video in three to five sentences for somebody who cannot see it: subjects and "
      "how they look, what they do in order, the place, the light, the camera. Say only what is "
      "seen. Do not begin with 'The video shows'."
    ),
    max_characters=2000,
  ),
)


def captions(prompts: tuple = ()) -> dict:
  """Side-car captions, those of an endpoint, and what was measured, as words."""
  return dict(
    prompts=prompts,  # () asks nobody
    frames=4,  # of a clip that go with a prompt
    asked="all",  # or only about "uncaptioned" clips
    measured="none",  # or "append" the words below to every caption, or as one of its "own"
    words=dict(motion=("little motion", 0.02, "", 0.15, "strong motion")),
    camera={
      "static": "static camera",
      "pan left": "the camera pans left",
      "pan right": "the camera pans right",
      "pan up": "the camera pans up",
      "pan down": "the camera pans down",
      "zoom in": "the camera zooms in",
      "zoom out": "the camera zooms out",
      "unsteady": "unsteady camera",
    },
    chat=dict(
      base_url="http://localhost:8000/v1",  # any endpoint that speaks OpenAI's chat protocol
      model="Qwen/Qwen2.5-VL-7B-Instruct",
      api_key_variable="",  # name of the environment variable that holds the key
      request=dict(temperature=0.2, max_tokens=400),
      max_side=512,  # pixels of the attached frames
      jpeg_quality=85,
      concurrency=8,
      timeout_seconds=120.0,
      tries=6,
      wait_seconds=1.0,  # before the second try, doubled before every further one
      give_up=20,  # failures in a row that end the job
      prompt_price=0.0,  # of a million tokens
      completion_price=0.0,
    ),
  )


def write() -> dict:
  """How clips are written."""
  return dict(
    name="clips",
    licence="unknown",  # of sources that bring none
    shard_bytes=2**28,
    codec="h264",  # or lossless
    quality=18,  # CRF of h264: visually the same as its source
    max_side=config_dict.placeholder(int),  # pixels; None leaves every size
    held_out_fraction=0.02,  # of the sources
    inherit_captions="one_shot",  # those of a whole source go to the clips of a source of one shot
  )
