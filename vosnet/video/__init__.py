"""Reading and writing video: the right frame for the right index, at the right time."""

from vosnet.video.info import Frame, VideoInfo
from vosnet.video.listing import list_videos
from vosnet.video.reader import VideoReader, open_video
from vosnet.video.writer import VideoWriter

__all__ = ["Frame", "VideoInfo", "VideoReader", "VideoWriter", "list_videos", "open_video"]
