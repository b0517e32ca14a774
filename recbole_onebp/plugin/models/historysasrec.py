"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.historysasrec``; see :mod:`registration`."""

from recbole.model.sequential_recommender import SASRec

from recbole_onebp.plugin.histories import HistoryModel

__all__ = ["HistorySASRec"]


class HistorySASRec(HistoryModel):
    """RecBole's SASRec, ranked as a general recommender."""

    inner = SASRec
