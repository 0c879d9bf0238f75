"""J and F the plain way, one full frame and one object at a time, by the official rules: an oracle."""

import math

import cv2
import numpy as np


def plain_region_similarity(pred: np.ndarray, true: np.ndarray) -> float:
    union = np.sum(pred | true)
    return float(np.sum(pred & true) / union) if union else 1.0


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    boundary = mask ^ east | mask ^ south | mask ^ south_east
    boundary[-1] = mask[-1] ^ east[-1]
    boundary[:, -1] = mask[:, -1] ^ south[:, -1]
    boundary[-1, -1] = False
    return boundary


def plain_boundary_accuracy(pred: np.ndarray, true: np.ndarray) -> float:
    radius = math.ceil(0.008 * np.linalg.norm(pred.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y * y + x * x <= radius * radius).astype(np.uint8)
    pred_edge, true_edge = plain_boundary(pred), plain_boundary(true)
    pred_near = cv2.dilate(pred_edge.astype(np.uint8), disk)
    true_near = cv2.dilate(true_edge.astype(np.uint8), disk)
    pred_total, true_total = np.sum(pred_edge), np.sum(true_edge)
    if pred_total == 0 and true_total == 0:
        return 1.0
    if pred_total == 0 or true_total == 0:
        return 0.0
    precision = np.sum(pred_edge & (true_near > 0)) / pred_total
    recall = np.sum(true_edge & (pred_near > 0)) / true_total
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
