"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.onebp``; see :mod:`registration`."""

from recbole_onebp.model import OneBP

__all__ = ["OneBP"]
