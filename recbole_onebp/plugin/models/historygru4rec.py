"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.historygru4rec``; see :mod:`registration`."""

from recbole.model.sequential_recommender import GRU4Rec

from recbole_onebp.plugin.histories import HistoryModel

__all__ = ["HistoryGRU4Rec"]


class HistoryGRU4Rec(HistoryModel):
    """RecBole's GRU4Rec, ranked as a general recommender."""

    inner = GRU4Rec
