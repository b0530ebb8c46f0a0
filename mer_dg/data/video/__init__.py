"""Clips of EPIC-Kitchens and HAC: their list, their files, what is read of them."""

from mer_dg.data.video.dataset import VIDEO_SETS, VideoDataset, load_video

__all__ = ["VIDEO_SETS", "VideoDataset", "load_video"]
