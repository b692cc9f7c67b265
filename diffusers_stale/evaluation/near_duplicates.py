"""Near-duplicates between two sets of pictures: two indices propose pairs, two distances decide.

The cost grows with the number of pictures times its square root, not with its square. What reads files is in
`picture_sets.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


SIDE = 32
"""Height and width to which pictures are averaged before anything is compared."""

HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
BAND_BITS, WIDE_BAND_BITS = 16, 32
MANY = 2**17
"""Pictures from which on bands are wide: with narrow ones, chance alone would then make too many keys equal."""

PROVED_DISTANCE = 2 * HASH_BITS // BAND_BITS - 1
"""Differing bits up to which the index of hashes misses no pair (of fewer than `MANY`): one of the 16 bands then
differs in one bit at most. With wide bands it is 15."""

LARGEST_DISTANCE = 40
LEAST_SIMILARITY = 0.93
"""What a pair must keep to be near-duplicates: differing bits of 256, and the cosine of their embeddings.

Between 500 and 1500 barnyards of different seeds the nearest had 52 bits and 0.89; a picture and its JPEG of quality
20 had 25 and 0.97, its rendering from the neighbouring camera 40 and 0.96.
"""

THUMBNAIL_SIDE = 16
EMBEDDING_SIZE = 64
LEAST_FOR_STATISTICS = 128
"""Pictures from which on hashes and embeddings are relative to what the two sets have in common."""

PROBES = 8
"""Lists of the index of embeddings that are looked through for each picture."""

LLOYD_ROUNDS = 6
LUMA = (0.299, 0.587, 0.114)
POPULATION = np.array([number.bit_count() for number in range(256)], dtype=np.int64)


@dataclass(frozen=True)
class Fingerprints:
    """What is kept of each picture.

    `names`: what it is called in reports. `coefficients`: `(count, 256)`, the lowest of a cosine transform of its
    grey values. `thumbnails`: `(count, 768)`, its colours, coarsely.
    """

    names: tuple[str, ...]
    coefficients: torch.Tensor
    thumbnails: torch.Tensor

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Match:
    """A picture of the first set and the nearest one of the second, with the distances that decided."""

    name: str
    other: str
    differing_bits: int
    similarity: float


@dataclass(frozen=True, kw_only=True)
class DuplicateReport:
    """`matches` of the `tested` pictures among the `indexed` ones, after `compared` comparisons of two pictures.

    A pair that is proposed several times is compared as often.
    """

    matches: tuple[Match, ...]
    tested: int
    indexed: int
    compared: int

    @property
    def share(self) -> float:
        """Of the tested pictures that have a near-duplicate."""
        return len(self.matches) / self.tested


def fingerprints(pictures: Iterable[tuple[str, torch.Tensor]]) -> Fingerprints:
    """Fingerprints of named pictures, each `(3, height, width)` in [-1, 1] and of any size from 8 pixels on.

    Raises `ValueError` for none at all, and for a picture of another shape or with values that are not finite.
    """
    names, coefficients, thumbnails = [], [], []
    transform = cosine_transform(SIDE, HASH_SIDE)
    for name, picture in pictures:
        if picture.ndim != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < 8:
            raise ValueError(
                f"{name} must be a picture of shape (3, height, width), at least 8 by 8, got {tuple(picture.shape)}; "
                "convert it to RGB."
            )
        if not torch.isfinite(picture).all():
            raise ValueError(f"{name} must have finite values, got NaN or infinity; leave it out.")
        small = functional.interpolate(picture.float()[None], (SIDE, SIDE), mode="area")[0]
        grey = torch.einsum("chw,c->hw", small, small.new_tensor(LUMA))
        names.append(name)
        coefficients.append((transform @ grey @ transform.T).flatten())
        thumbnails.append(functional.adaptive_avg_pool2d(small, THUMBNAIL_SIDE).flatten())
    if not names:
        raise ValueError("A set must hold at least one picture, got none; name a folder with pictures or movies.")
    return Fingerprints(tuple(names), torch.stack(coefficients), torch.stack(thumbnails))


def cosine_transform(size: int, kept: int) -> torch.Tensor:
    """Rows of the discrete cosine transform of `size` values, the lowest `kept` frequencies; `(kept, size)`."""
    frequencies = torch.arange(kept, dtype=torch.float64)[:, None]
    places = torch.arange(size, dtype=torch.float64)[None] + 0.5
    return torch.cos(torch.pi * places * frequencies / size).float()


def find_near_duplicates(
    tested: Fingerprints,
    indexed: Fingerprints,
    largest_distance: int = LARGEST_DISTANCE,
    least_similarity: float = LEAST_SIMILARITY,
) -> DuplicateReport:
    """For each picture of `tested`, its nearest near-duplicate in `indexed`, if it has one.

    The perceptual hash is that of Zauner ("Implementation and benchmarking of perceptual image hash functions", 2010)
    with 256 bits, each relative to its median over both sets, so that what all pictures share does not count. It is
    searched by multi-index hashing (Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index
    hashing", 2012): exact up to `PROVED_DISTANCE`. The embedding is the whitened principal components of coarse
    colours, searched in inverted lists (Jegou, Douze and Schmid, "Product quantization for nearest neighbor search",
    2011, section 4). A pair that either proposes must pass both limits.
    """
    bits, other_bits = hash_bits(tested.coefficients, indexed.coefficients)
    embedded, other_embedded = embeddings(tested.thumbnails, indexed.thumbnails)
    best: dict[int, tuple[int, int, float]] = {}
    compared = 0
    proposals = (propose_by_hash(bits, other_bits), propose_by_embedding(embedded, other_embedded, least_similarity))
    for proposal in proposals:
        for rows, columns in proposal:
            compared += len(rows)
            distances = POPULATION[bits[rows] ^ other_bits[columns]].sum(axis=1)
            near = distances <= largest_distance
            rows, columns, distances = rows[near], columns[near], distances[near]
            similarities = (embedded[rows] * other_embedded[columns]).sum(dim=1).numpy()
            for row, column, distance, similarity in zip(rows, columns, distances, similarities, strict=True):
                known = best.get(int(row))
                if similarity >= least_similarity and (known is None or similarity > known[2]):
                    best[int(row)] = (int(column), int(distance), float(similarity))
    matches = tuple(
        Match(
            name=tested.names[row],
            other=indexed.names[column],
            differing_bits=distance,
            similarity=round(similarity, 4),
        )
        for row, (column, distance, similarity) in sorted(best.items())
    )
    return DuplicateReport(matches=matches, tested=len(tested), indexed=len(indexed), compared=compared)


def hash_bits(*sets: torch.Tensor) -> list[np.ndarray]:
    """Hashes of the coefficients of each set, uint8 `(count, 32)`.

    A bit says whether a coefficient is above its median over all sets, or above 0 where they are few. Neighbouring
    frequencies, whose bits go together, come into different bands.
    """
    together = torch.cat(sets)
    middle = together.median(dim=0).values if len(together) >= LEAST_FOR_STATISTICS else torch.zeros(HASH_BITS)
    order = np.arange(HASH_BITS).reshape(BAND_BITS, -1).T.flatten()
    return [np.packbits((one > middle).numpy()[:, order], axis=1) for one in sets]


def embeddings(*sets: torch.Tensor) -> list[torch.Tensor]:
    """Unit vectors `(count, size)` of the thumbnails of each set."""
    together = torch.cat(sets)
    if len(together) < LEAST_FOR_STATISTICS:
        centred = [one - one.mean(dim=1, keepdim=True) for one in sets]
        return [functional.normalize(one, dim=1) for one in centred]
    mean = together.mean(dim=0)
    size = min(EMBEDDING_SIZE, len(together) // 2)
    variances, directions = torch.linalg.eigh(torch.cov(together.T))
    scales = variances.flip(0)[:size].clamp_min(0).sqrt()
    # Components of hardly any variance are noise: they are not blown up beyond a thousandth of the first one.
    whitening = directions.flip(1)[:, :size] / scales.clamp_min(1e-3 * float(scales[0]) + 1e-8)
    return [functional.normalize((one - mean) @ whitening, dim=1) for one in sets]


def propose_by_hash(bits: np.ndarray, other_bits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes of which a band differs in one bit at most, as numbers in the two sets.

    Equal hashes count once, so that a thousand black pictures in both sets are not a million pairs.
    """
    unique, unique_rows = np.unique(bits, axis=0, return_index=True)
    other_unique, other_rows = np.unique(other_bits, axis=0, return_index=True)
    yield from _equal(bits, unique, other_unique, other_rows)
    band_bits = BAND_BITS if len(other_unique) < MANY else WIDE_BAND_BITS
    keys, other_keys = (hashes.view(f">u{band_bits // 8}").astype(np.int64) for hashes in (unique, other_unique))
    flips = np.array([0, *(1 << bit for bit in range(band_bits))])
    for band in range(keys.shape[1]):
        order = np.argsort(other_keys[:, band], kind="stable")
        ordered = other_keys[order, band]
        wanted = keys[:, band, None] ^ flips
        first, last = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
        rows = np.repeat(np.arange(len(keys)), (last - first).sum(axis=1))
        columns = order[_ranges(first.flatten(), last.flatten())]
        yield unique_rows[rows], other_rows[columns]


def _equal(
    bits: np.ndarray, unique: np.ndarray, other_unique: np.ndarray, other_rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every picture whose hash is found in the other set, with the first one there."""
    places = {hashed.tobytes(): row for hashed, row in zip(other_unique, other_rows, strict=True)}
    found = [(row, places[hashed.tobytes()]) for row, hashed in enumerate(bits) if hashed.tobytes() in places]
    rows, columns = np.array(found, dtype=np.int64).reshape(-1, 2).T
    yield rows, columns


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The numbers from each of `first` up to before each of `last`, one range after the other."""
    lengths = last - first
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts - first, lengths)


def propose_by_embedding(
    embedded: torch.Tensor, other_embedded: torch.Tensor, least_similarity: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of unit vectors of at least this similarity, as numbers in the two sets; nearly all of them."""
    centres = spherical_means(other_embedded, max(round(len(other_embedded) ** 0.5), 1))
    home = (other_embedded @ centres.T).argmax(dim=1)
    probed = (embedded @ centres.T).topk(min(PROBES, len(centres)), dim=1).indices
    for centre in range(len(centres)):
        columns = torch.nonzero(home == centre)[:, 0]
        rows = torch.nonzero((probed == centre).any(dim=1))[:, 0]
        if len(rows) and len(columns):
            near = torch.nonzero(embedded[rows] @ other_embedded[columns].T >= least_similarity)
            yield rows[near[:, 0]].numpy(), columns[near[:, 1]].numpy()


def spherical_means(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` unit vectors around which `vectors` lie (k-means on the sphere), begun from evenly spaced ones."""
    centres = vectors[torch.linspace(0, len(vectors) - 1, count).long()]
    for _ in range(LLOYD_ROUNDS):
        home = (vectors @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, home, vectors)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, functional.normalize(sums, dim=1), centres)
    return centres
