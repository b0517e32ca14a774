"""From a trained model to recommendations: the bundle, and :class:`Recommender`, which needs only numpy."""

from recbole_onebp.serving.answers import Answers, Explanation, NewItems, Scores, Update
from recbole_onebp.serving.recommender import Recommender

__all__ = ["Answers", "Explanation", "NewItems", "Recommender", "Scores", "Update"]
