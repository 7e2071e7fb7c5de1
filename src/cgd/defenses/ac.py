"""AC (Activation Clustering): in feature space, poison is a cluster of its own in its class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgd.data.dataset import ImageData
from cgd.defenses.base import Terms, register
from cgd.defenses.cleansing import Cleansing, rows_of_classes
from cgd.defenses.features import Floats, feature_matrix, principal_components
from cgd.models import Classifier


@register
@dataclass(frozen=True)
class ActivationClustering(Cleansing):
    """The smaller of two clusters is removed in every class.

    Attributes:
        dims: principal components of the features of a class that are clustered.
    """

    name = "ac"
    source = "arXiv 1811.03728"

    dims: int = 10

    def scores(self, model: Classifier, data: ImageData, terms: Terms) -> Floats:
        features = feature_matrix(model, data.images, terms.device)
        return cluster_scores(features, data.labels.numpy(), self.dims, terms.seed)

    def suspects(self, scores: Floats, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        return scores > 0.5


def cluster_scores(features: Floats, labels: NDArray[np.int64], dims: int, seed: int) -> Floats:
    """Divide each class in two: the smaller a sample's cluster, the more suspicious it is.

    Args:
        features: float64 [n, width].
        labels: int64 [n].
        dims: principal components that are clustered.
        seed: of the clustering.

    Returns:
        float64 [n], the share of its class that is NOT in a sample's cluster.
    """
    from sklearn.cluster import KMeans

    scores = np.zeros(len(labels))
    for rows in rows_of_classes(labels, least=3):
        reduced = principal_components(features[rows], dims)
        if not reduced.any():  # all features alike
            continue
        cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced)
        share = np.bincount(cluster, minlength=2) / len(rows)
        scores[rows] = 1 - share[cluster]
    return scores
