"""Quality of masks: region similarity J, boundary accuracy F, and the summaries of DAVIS and YouTube-VOS."""

from vosnet.metrics.scores import ObjectScores, score_frames
from vosnet.metrics.similarity import boundary_accuracy, boundary_radius, region_similarity, similarities
from vosnet.metrics.summary import (
    annotated_objects,
    four_way_mean,
    object_statistics,
    statistics,
    summarize,
)

__all__ = [
    "ObjectScores",
    "annotated_objects",
    "boundary_accuracy",
    "boundary_radius",
    "four_way_mean",
    "object_statistics",
    "region_similarity",
    "score_frames",
    "similarities",
    "statistics",
    "summarize",
]
