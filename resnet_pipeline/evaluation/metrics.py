"""Top-k errors as summed counts: added per batch, reduced once, divided once."""

from __future__ import annotations

import torch


def label_ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how many classes stand before the label, int64 [N], for scores [N, C] and labels int64 [N].

    Ties are decided by the class number: of equal scores the lower class stands first. A label whose score is NaN
    stands last.

    >>> label_ranks(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2])).tolist()
    [1]
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    ranks = before.sum(1)
    return torch.where(own[:, 0].isnan(), scores.shape[1], ranks)


class TopErrors:
    """Counts for top-1 and top-5 error: wrong at 1, wrong at 5, images; ``sums`` float64 [3].

    Example: ``counts = TopErrors(); counts.add(logits, labels); counts.errors()``
    """

    def __init__(self, sums: torch.Tensor | None = None) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64) if sums is None else sums

    def add(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch of scores [N, C] (logits or probabilities) and labels int64 [N]."""
        ranks = label_ranks(scores, labels)
        counts = torch.stack([(ranks >= 1).sum(), (ranks >= 5).sum(), ranks.new_tensor(len(labels))])
        self.sums = self.sums.to(scores.device) + counts

    def errors(self) -> dict[str, float]:
        """Return {"top1", "top5"} in percent and the number of images; synchronises with the device."""
        top1, top5, images = self.sums.tolist()
        return {"top1": 100 * top1 / max(images, 1), "top5": 100 * top5 / max(images, 1), "images": images}
