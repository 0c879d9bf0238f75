"""Generated clips with exact masks: textured objects that move, deform, occlude, leave and return."""

from vosnet.synthetic.scene import Scene, SyntheticClip, make_clip
from vosnet.synthetic.writing import write_davis, write_video

__all__ = ["Scene", "SyntheticClip", "make_clip", "write_davis", "write_video"]
