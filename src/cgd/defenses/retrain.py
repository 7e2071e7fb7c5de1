"""Training anew on the clean images alone: what filtered data are good for."""

from dataclasses import dataclass

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Repair, Terms, register
from cgd.defenses.scratch import train_normally
from cgd.defenses.tuning import check_clean
from cgd.models import Classifier


@register
@dataclass(frozen=True)
class Retraining(Repair):
    """A normal training on the clean images; of the model, only what it takes and tells is kept.

    As after AC, Spectral Signatures or SCAn, with a filter of your choice. It needs all that are
    clean, and they must hold next to no poison: what is left of it is learned again.
    """

    name = "retrain"
    source = "arXiv 1811.03728 (AC)"

    def repair(self, model: Classifier, clean: ImageData, terms: Terms) -> Defended:
        check_clean(model, clean)
        return Defended(*train_normally(clean, terms))
