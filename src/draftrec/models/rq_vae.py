"""RQ-VAE: an autoencoder whose middle is quantised residually, trained on item vectors.

The model of TIGER (Rajput et al. 2023, section 3.1), with the quantiser of the package
vector-quantize-pytorch. What it gives are latents and codebooks; which codes an item gets in the
end, without crowding and without collisions, is up to `items.quantise`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from draftrec.core import FloatArray
from draftrec.errors import DraftrecError, needing
from draftrec.items.quantise import Quantised, assign
from draftrec.items.settings import QuantiseSettings, RqVaeSettings

_BATCH = 1024


class RqVae(nn.Module):
    """Encoder, residual quantiser and decoder for vectors of `width` numbers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, codes: QuantiseSettings, settings: RqVaeSettings) -> None:
        super().__init__()
        sizes = (width, *settings.hidden, settings.dim)
        self.encoder = _layers(sizes)
        self.decoder = _layers(sizes[::-1])
        self.quantiser: Any = _residual_vq()(
            dim=settings.dim,
            num_quantizers=codes.levels,
            codebook_size=codes.codes,
            commitment_weight=settings.commitment,
            kmeans_init=True,
            threshold_ema_dead_code=1,
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def loss(self, vectors: Tensor) -> Tensor:
        """Squared error of the rebuilt batch `[b, width]`, plus the commitment of each level."""
        scaled = (vectors - self.mean) / self.scale
        latents = self.encoder(scaled)
        quantised, _, commitment = self.quantiser(latents)
        return nn.functional.mse_loss(self.decoder(quantised), scaled) + commitment.sum()

    @torch.inference_mode()
    def encode(self, vectors: FloatArray) -> FloatArray:
        """Latents float32 `[n, dim]` of `vectors` float32 `[n, width]`."""
        return self._by_batch(vectors, lambda x: self.encoder((x - self.mean) / self.scale))

    @torch.inference_mode()
    def decode(self, latents: FloatArray) -> FloatArray:
        """Vectors float32 `[n, width]` from `latents` float32 `[n, dim]`."""
        return self._by_batch(latents, lambda x: self.decoder(x) * self.scale + self.mean)

    def codebooks(self) -> FloatArray:
        """float32 `[L, K, dim]`."""
        return self.quantiser.codebooks.detach().float().cpu().numpy()

    def _by_batch(self, rows: FloatArray, function: Any) -> FloatArray:
        device = self.scale.device
        done = [
            function(torch.from_numpy(rows[i : i + _BATCH]).to(device)).cpu()
            for i in range(0, len(rows), _BATCH)
        ]
        return torch.cat(done).numpy()


def fit_rq_vae(
    vectors: FloatArray,
    codes: QuantiseSettings,
    settings: RqVaeSettings,
    device: torch.device,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[Quantised, FloatArray]:
    """Train on `vectors` float32 `[n, width]`; the codes of all of them and what the decoder
    rebuilds from them, float32 `[n, width]`. `on_epoch` is told how many epochs are done, and the
    last one's mean loss.

    The same seed gives the same codes on the same machine. Raises DraftrecError for fewer vectors
    than codes, and when the quantiser's package is missing.
    """
    if len(vectors) < codes.codes:
        raise DraftrecError(
            f"{len(vectors):,} items are too few for {codes.codes:,} codes per level; ask for "
            "fewer with --codes"
        )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(codes.seed)
        model = RqVae(vectors.shape[1], codes, settings).to(device)
        model.mean.copy_(torch.from_numpy(vectors.mean(axis=0)))
        model.scale.fill_(max(float(vectors.std()), 1e-12))
        _train(model.train(), vectors, codes.codes, settings, on_epoch)
    latents = model.eval().encode(vectors)
    quantised = assign(latents, model.codebooks(), codes)
    return quantised, model.decode(quantised.vectors())


def _train(
    model: RqVae,
    vectors: FloatArray,
    codes: int,
    settings: RqVaeSettings,
    on_epoch: Callable[[int, float], None] | None,
) -> None:
    device = model.scale.device
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    # The first batch starts the codebooks, so it has to hold enough different vectors.
    batch = max(_BATCH, 4 * codes)
    for epoch in range(settings.epochs):
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(vectors)).split(batch):
            loss = model.loss(torch.from_numpy(vectors[rows.numpy()]).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            total += loss.detach() * len(rows)
        if on_epoch:
            on_epoch(epoch + 1, float(total) / len(vectors))


def _layers(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _residual_vq() -> Any:
    why, instead = "--method rq-vae needs vector-quantize-pytorch", "use --method rq-kmeans"
    with needing("sid", why, instead):
        from vector_quantize_pytorch import ResidualVQ
    return ResidualVQ
