"""What synthetic text is worth: to a small model, to a classifier, as a distribution; and what it copies."""

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.data import canary
from reticent.data.contamination import NGRAM, Benchmark
from reticent.data.prompts import read_prompts
from reticent.data.record import Record
from reticent.data.split import PARTS
from reticent.measurement import Measurement
from reticent.progress import Progress
from reticent.recipe import Recipe
from reticent.run import RecordPart, Run
from reticent.stages.attacking import Findings, Texts
from reticent.stages.inputs import encoder, open_model
from reticent.statistics import clopper_pearson, paired, wilson
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reticent.stages.synthesize import Corpus
    from reticent.utility import distribution, student
    from reticent.utility.labels import Labelled

FEWEST = 10
"""Texts a side that anything is said on."""
EMBEDDED, EMBEDDED_TOKENS = 500, 512  # texts a side of MAUVE, and tokens of each
ASKED = 2000  # held-out records that students are asked on
BINS = 12  # of the lengths
_AGAINST = "against held-out text; control: training text against it; jackknife over owners"
# Of the students: constants, so that nothing private sets them.
PASSES, TOKENS_A_STEP, STEPS = 10, 1024, (60, 400)
LEARNING_RATE = 3e-3


class _Bench(NamedTuple):
    """Synthetic text and the real text that it is compared with; real texts in random order."""

    run: Run
    corpus: "Corpus"
    tokenizer: "PreTrainedTokenizerBase"
    trained: Texts
    held_out: Texts
    folder: Path
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def seed(self) -> int:
        asked = self.run.recipe.synthetic
        assert asked is not None
        return asked.seed

    def rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 72, stream])

    def plain(self, texts: Texts) -> list[str]:
        """Real records as the model writes them: with their prompts where it was to write these too."""
        asked = self.run.recipe.synthetic
        assert asked is not None
        if asked.prompts is not None or not self.recipe.data.train_on_prompt:
            return [record.completion for record in texts.records]
        between = "" if self.recipe.data.template == "verbatim" else "\n"
        return [
            f"{record.prompt}{between}{record.completion}" if record.prompt else record.completion
            for record in texts.records
        ]

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts as tokens, without what stands around them."""
        found = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.array(ids, dtype=np.int64) for ids in found["input_ids"]]


def judge(
    run: Run, corpus: "Corpus", tokenizer: "PreTrainedTokenizerBase", folder: Path, progress: Progress
) -> Findings:
    """What the corpus is worth beside real text. ``folder``: where small models lie while they are trained."""
    planted = {one.id for one in canary.from_json(run.read_canaries())}
    bench = _Bench(
        run,
        corpus,
        tokenizer,
        _real(run, "train", planted, 4 * max(EMBEDDED, len(corpus.texts))),
        _real(run, "held_out", planted, ASKED),
        folder,
        progress,
    )
    counts = {
        "synthetic texts": len(corpus.texts),
        "training records": len(bench.trained.records),
        "held-out records": len(bench.held_out.records),
    }
    if few := [f"{count:,} {what}" for what, count in counts.items() if count < FEWEST]:
        why = f"{' and '.join(few)} are too few to compare: {FEWEST} of each are needed"
        return Findings([], {"unanswered": [{"question": "next_token_accuracy", "why": why}]})
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {"unanswered": []}
    parts = (_students, _classifiers, _likeness, _overlap)
    with progress.task("judging", total=len(parts)) as task:
        for part in parts:
            found = part(bench)
            measurements += found.measurements
            plots["unanswered"] += found.plots.pop("unanswered", [])
            plots |= found.plots
            task.advance()
    return Findings(measurements, plots)


def _real(run: Run, part: RecordPart, planted: set[str], most: int) -> Texts:
    """Records of random units, about ``most``, without invented ones, in random order."""
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(run.read_units(part)):
        if unit not in planted:
            rows.setdefault(unit, []).append(row)
    rng = np.random.default_rng([run.recipe.data.seed, 73, PARTS.index(part)])
    names = list(rows)
    keep: set[int] = set()
    for i in rng.permutation(len(names)):
        if len(keep) >= most:
            break
        keep.update(rows[names[i]])
    found = run.read_records(part, keep) if keep else []
    order = rng.permutation(len(found)).tolist()
    return Texts([found[i][0] for i in order], [found[i][1] for i in order])


# ---------------------------------------------------------------------------------------------------------- students


def _students(bench: _Bench) -> Findings:
    """Next-token accuracy on held-out text of a small model that learned synthetic text, and of one that learned real
    text."""
    from reticent.utility import student as s

    encode = encoder(bench.recipe, bench.tokenizer)
    ours = encode(bench.corpus.pairs()).tokens
    theirs = encode([(one.prompt, one.completion) for one in bench.trained.records]).tokens
    asked = encode([(one.prompt, one.completion) for one in bench.held_out.records])
    owners = [unit for unit, pieces in zip(bench.held_out.units, asked.pieces, strict=True) for _ in range(pieces)]
    if not ours or not theirs or not asked.tokens:
        return _unanswered("next_token_accuracy", "a side has no text that can be learned")
    ours, theirs = s.same_size(ours, theirs)
    vocabulary = s.Vocabulary([ours, theirs])
    corpora = {"real": vocabulary(theirs), "synthetic": vocabulary(ours)}
    target = vocabulary(asked.tokens)
    longest = max(len(one) for side in (*corpora.values(), target) for one in side)
    hits = {}
    for name, corpus in corpora.items():
        model = s.student(len(vocabulary), longest, seed=bench.seed)
        _train(model, corpus, bench.folder / f"student-{name}", bench)
        hits[name] = s.next_tokens(_scored(model), target, bench.progress)
    return Findings(_of_students(bench, corpora, hits, target, owners), {})


def _of_students(
    bench: _Bench,
    corpora: "dict[str, list[Tokens]]",
    hits: "dict[str, student.Hits]",
    target: Sequence[Tokens],
    owners: Sequence[Hashable],
) -> list[Measurement]:
    from reticent.utility import student as s

    tokens = min(sum(map(len, corpus)) for corpus in corpora.values())
    measured = partial(Measurement, n=len(set(owners)), unit="share", counted="held-out owners")
    found = []
    for name in ("synthetic", "real"):
        value, interval = s.accuracy(hits[name], owners, rng=bench.rng(1))
        found.append(
            measured(
                name="next_token_accuracy",
                model=name,
                value=value,
                interval=interval,
                method=f"a model of {s.LAYERS} layers that learned {tokens:,} tokens from nothing in {_steps(tokens)} "
                f"steps; {int(hits[name].asked.sum()):,} held-out tokens, bootstrap over owners",
                floor=s.commonest(corpora[name], target),
                ceiling=1.0,
            )
        )
    ratio = s.reached(hits["synthetic"], hits["real"], owners, rng=bench.rng(2))
    if ratio is not None:
        found.append(
            measured(
                name="next_token_accuracy_reached",
                model="synthetic",
                value=ratio.value,
                interval=ratio.interval,
                method="accuracy after synthetic text over that after as much real text, bootstrap over owners",
            )
        )
    return found


def _steps(tokens: int) -> int:
    from reticent.utility.student import steps_for

    return steps_for(tokens, passes=PASSES, tokens_a_step=TOKENS_A_STEP, least=STEPS[0], most=STEPS[1])


def _scored(model: Any) -> Any:
    from reticent.models.language_model import CausalModel

    return CausalModel(model)


def _train(model: Any, corpus: Sequence[Tokens], folder: Path, bench: _Bench) -> None:
    """Trains on the texts of ``corpus``, the same number of tokens a step whatever their lengths."""
    from reticent.gradients.rows import Unit
    from reticent.models.load import best_device
    from reticent.privacy.plan import nonprivate_plan
    from reticent.training import loop

    tokens = sum(map(len, corpus))
    steps = _steps(tokens)
    batch = min(len(corpus), max(1, round(TOKENS_A_STEP * len(corpus) / tokens)))
    with bench.run.temporary():
        folder.mkdir(parents=True, exist_ok=True)
        loop.train(
            model.to(best_device()),
            [Unit(str(number), (one,)) for number, one in enumerate(corpus)],
            nonprivate_plan(unit="text", units=len(corpus), batch_size=batch, steps=steps),
            loop.Settings(
                learning_rate=LEARNING_RATE,
                min_learning_rate=0.0,
                optimizer="adamw",
                momentum=0.0,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.01,
                schedule="cosine",
                warmup=steps // 10,
                loss="sum",
                micro_batch_tokens=2 * TOKENS_A_STEP,
                checkpoint_every=100,
                shard=False,
                seed=bench.seed,
            ),
            loop.Files(folder / "ledger.jsonl", folder / "log.jsonl", folder / "checkpoint"),
            bench.progress,
        )


# ------------------------------------------------------------------------------------------------------- classifiers


def _classifiers(bench: _Bench) -> Findings:
    """Accuracy on held-out records of a classifier that learned synthetic text, and of one that learned real text."""
    from reticent.utility import labels

    found = _labelled(bench)
    if isinstance(found, str):
        return _unanswered("task_accuracy", found)
    ours, theirs, asked, what = found
    count = min(len(ours.texts), len(theirs.texts))
    learned = {"synthetic": ours.drawn(count, bench.rng(3)), "real": theirs.drawn(count, bench.rng(4))}
    if not all(side.enough() for side in learned.values()):
        return _unanswered("task_accuracy", f"as many labelled texts of both kinds are {count:,}, or of one label")
    try:
        right = {name: labels.classified(side, asked, seed=bench.seed) for name, side in learned.items()}
    except ValueError as error:
        return _unanswered("task_accuracy", str(error))
    return Findings(
        [
            Measurement(
                name="task_accuracy",
                model=name,
                value=float(right[name].mean()),
                interval=wilson(int(right[name].sum()), len(asked.texts)),
                n=len(asked.texts),
                unit="share",
                counted="held-out records",
                method=f"{what}: logistic regression on TF-IDF of {count:,} texts; Wilson",
                floor=labels.majority(side, asked),
                ceiling=1.0,
                p_value=paired(right["synthetic"], right["real"]) if name == "synthetic" else None,
            )
            for name, side in learned.items()
        ],
        {},
    )


def _labelled(bench: _Bench) -> "tuple[Labelled, Labelled, Labelled, str] | str":
    """Synthetic, real and held-out texts with labels, and what is asked; or why there are none.

    Two rules. Where records are questions with options, the answer is the label of the question. Else a public prompt
    names the label (or is it), and a real record has it if its prompt is one of these, word for word.
    """
    from reticent.utility.labels import Labelled

    asked = bench.recipe.synthetic
    assert asked is not None
    if asked.prompts is None:
        return "synthetic.prompts is null, so no text has a label"
    questions = [_questions(side) for side in (bench.trained, bench.held_out)]
    if all(side.enough() for side in questions):
        answers = set(questions[0].labels)
        pairs = [(prompt, text) for prompt, text in bench.corpus.pairs() if prompt and text in answers]
        ours = Labelled([prompt for prompt, _ in pairs], [text for _, text in pairs])
        if ours.enough():
            return ours, questions[0], questions[1], f"the answer of a question ({len(pairs):,} synthetic ones are one)"
    prompts = read_prompts(Path(asked.prompts))
    label = {one.text: one.label or one.text for one in prompts}
    real = [_prompted(side.records, label) for side in (bench.trained, bench.held_out)]
    ours = Labelled(
        bench.corpus.texts,
        [one or prompt for one, prompt in zip(bench.corpus.labels, bench.corpus.prompts, strict=True)],
    )
    if not (ours.enough() and all(side.enough() for side in real)):
        return "too few records are questions with options, or have one of the public prompts"
    return ours, real[0], real[1], "the label of the prompt, told by the text"


def _questions(texts: Texts) -> "Labelled":
    from reticent.utility.labels import Labelled

    own = [record for record in texts.records if record.options]
    return Labelled([record.prompt for record in own], [record.completion for record in own])


def _prompted(records: Sequence[Record], label: dict[str, str]) -> "Labelled":
    from reticent.utility.labels import Labelled

    own = [record for record in records if record.prompt in label]
    return Labelled([record.completion for record in own], [label[record.prompt] for record in own])


# ---------------------------------------------------------------------------------------------------------- likeness


def _likeness(bench: _Bench) -> Findings:
    """How far synthetic text is from held-out text, beside how far training text is from it."""
    from reticent.utility import distribution as d

    count = min(len(bench.corpus.texts), len(bench.trained.records), len(bench.held_out.records), EMBEDDED)
    texts = {
        "synthetic": bench.corpus.texts[:count],
        "trained": bench.plain(bench.trained)[:count],
        "held out": bench.plain(bench.held_out)[:count],
    }
    owners = {"synthetic": None, "trained": bench.trained.units[:count], "held out": bench.held_out.units[:count]}
    ids = {name: bench.ids(side) for name, side in texts.items()}
    sides = {name: d.Texts.of(side, owners[name]) for name, side in texts.items()}
    measured = partial(Measurement, model="synthetic", n=count, counted="texts")
    embedded, frontier = _embedded(bench, ids, owners, measured)
    lengths = {"real": ids["trained"], "synthetic": ids["synthetic"]}
    return Findings(
        [embedded, *_words(bench, sides, measured), _long(bench, sides, measured)],
        {"frontier": frontier, "lengths": _lengths(lengths)},
    )


def _embedded(
    bench: _Bench, ids: dict[str, list[np.ndarray]], owners: dict[str, list[str] | None], measured: Any
) -> tuple[Measurement, list[list[float]]]:
    from reticent.utility import distribution as d
    from reticent.utility.embeddings import embed

    end = np.array([bench.tokenizer.eos_token_id], dtype=np.int64)  # of a text without a token
    model = open_model(bench.run, "base")
    points = {
        name: embed(model, [one[:EMBEDDED_TOKENS] if len(one) else end for one in side], bench.progress)
        for name, side in ids.items()
    }
    found = {
        name: d.mauve(points[name], points["held out"], seed=bench.seed, owners=(owners[name], owners["held out"]))
        for name in ("synthetic", "trained")
    }
    ours = found["synthetic"]
    measurement = measured(
        name="mauve",
        value=ours.value,
        interval=ours.interval,
        unit="area",
        method=f"mean hidden states of the base model, {ours.clusters} clusters, {_AGAINST}",
        floor=0.0,
        ceiling=1.0,
        control=found["trained"].value,
    )
    return measurement, [[float(x), float(y)] for x, y in ours.curve]


def _words(bench: _Bench, sides: "dict[str, distribution.Texts]", measured: Any) -> list[Measurement]:
    """Of as many words a side: which pairs of words follow each other, and how many are different ones."""
    from reticent.utility import distribution as d

    most = min(sum(map(len, side.words)) for side in sides.values())
    cut = {name: side.first(most) for name, side in sides.items()}
    if not all(any(len(text) > 1 for text in side.words) for side in cut.values()):
        return []
    single, pairs, control = (
        d.ngram_distance(cut[name], cut["held out"], size=size, seed=bench.seed)
        for name, size in (("synthetic", 1), ("synthetic", 2), ("trained", 2))
    )
    ours, theirs = (d.distinct_share(cut[name], size=2, seed=bench.seed) for name in ("synthetic", "held out"))
    return [
        measured(
            name="ngram_distance",
            value=pairs.value,
            interval=pairs.interval,
            unit="bits",
            method=f"Jensen-Shannon divergence of word pairs ({single.value:.3f} of single words), {most:,} words a "
            f"side, {_AGAINST}",
            floor=0.0,
            ceiling=1.0,
            control=control.value,
        ),
        measured(
            name="distinct_share",
            value=ours.value,
            interval=ours.interval,
            unit="share",
            method=f"different ones among the word pairs of {most:,} words; control: of as many held-out words; "
            "jackknife",
            ceiling=1.0,
            control=theirs.value,
        ),
    ]


def _long(bench: _Bench, sides: "dict[str, distribution.Texts]", measured: Any) -> Measurement:
    """How far lengths are apart."""
    from scipy.stats import wasserstein_distance

    from reticent.utility import distribution as d

    ours, theirs = (
        d.length_distance(sides[name], sides["held out"], seed=bench.seed) for name in ("synthetic", "trained")
    )
    apart = wasserstein_distance(*([len(text) for text in sides[name].words] for name in ("synthetic", "held out")))
    found: Measurement = measured(
        name="length_distance",
        value=ours.value,
        interval=ours.interval,
        unit="share",
        method=f"Kolmogorov-Smirnov statistic of words ({apart:.1f} words by Wasserstein), {_AGAINST}",
        floor=0.0,
        ceiling=1.0,
        control=theirs.value,
    )
    return found


def _lengths(ids: dict[str, list[np.ndarray]]) -> dict[str, list[list[float]]]:
    """Shares of texts by their tokens: (lower edge, share) of equal bins."""
    counts = {name: [len(one) for one in side] for name, side in ids.items()}
    edges = np.linspace(0, max(max(side) for side in counts.values()) + 1, BINS + 1)
    return {
        name: [
            [float(edge), float(share)]
            for edge, share in zip(edges, np.histogram(side, edges)[0] / len(side), strict=False)
        ]
        for name, side in counts.items()
    }


# ----------------------------------------------------------------------------------------------------------- overlap


def _overlap(bench: _Bench) -> Findings:
    """What stands in the training text word for word, planted records among it."""
    from reticent.utility.overlap import longest_runs

    whole = Benchmark(
        text for record, _ in bench.run.read_records("train") for text in (record.prompt, record.completion) if text
    )
    texts, real = bench.corpus.texts, bench.plain(bench.held_out)
    hits, control = whole.hits(texts), whole.hits(real)
    learned = [tokens.ids for _, _, tokens in bench.run.read_tokens()]
    longest = longest_runs(bench.ids(texts), learned)
    apart = longest_runs(bench.ids(real[: len(texts)]), learned)
    measured = partial(Measurement, model="synthetic", n=len(texts), counted="texts")
    return Findings(
        [
            measured(
                name="overlap_verbatim",
                value=float(hits.mean()),
                interval=clopper_pearson(int(hits.sum()), len(texts)),
                unit="share",
                method=f"a run of {NGRAM} words of the training text; control: {len(real):,} held-out texts; "
                "Clopper-Pearson",
                floor=0.0,
                ceiling=1.0,
                control=float(control.mean()),
            ),
            measured(
                name="longest_overlap",
                value=float(longest.max()),
                interval=None,
                unit="tokens",
                method=f"the longest of all, median {np.median(longest):g}; control: {len(apart):,} held-out texts, "
                f"median {np.median(apart):g}",
                floor=0.0,
                control=float(apart.max()),
            ),
        ],
        {},
    )


def _unanswered(question: str, why: str) -> Findings:
    return Findings([], {"unanswered": [{"question": question, "why": why}]})
