"""From a data frame to recommendations in one call: :func:`fit`, and the estimator of it."""

from recbole_onebp.dataframe.estimator import OneBPRecommender
from recbole_onebp.dataframe.recommender import FittedRecommender, Metrics
from recbole_onebp.dataframe.training import fit

__all__ = ["FittedRecommender", "Metrics", "OneBPRecommender", "fit"]
