"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.implicitbpr``; see :mod:`registration`."""

from recbole_onebp.plugin.outside import ImplicitModel

__all__ = ["ImplicitBPR"]


class ImplicitBPR(ImplicitModel):
    """BPR of the library ``implicit`` (Rendle et al. 2009)."""

    module, kind, own_keys = "implicit.bpr", "BayesianPersonalizedRanking", ("learning_rate",)
