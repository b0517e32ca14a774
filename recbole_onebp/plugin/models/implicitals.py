"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.implicitals``; see :mod:`registration`."""

from recbole_onebp.plugin.outside import ImplicitModel

__all__ = ["ImplicitALS"]


class ImplicitALS(ImplicitModel):
    """Alternating least squares of the library ``implicit`` (Hu et al. 2008; Takács et al. 2011)."""

    module, kind, own_keys = "implicit.als", "AlternatingLeastSquares", ("alpha",)
