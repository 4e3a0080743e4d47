"""The report in words: the article's face, every number with its error bar, nothing hidden."""

from __future__ import annotations

import numpy as np
import pytest
from report import results_made as made
from scipy import stats

from spectral_fast.curvature.layer_mass import LayerMass
from spectral_fast.report.text import summarize
from spectral_fast.results import Skipped
from spectral_fast.weights.scan import scan


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_face_of_the_article() -> None:
    lines = summarize(made.diagnosis()).split("\n")
    assert lines[:3] == ["=" * 50, "NEURAL NETWORK EIGENVALUE ANALYSIS", "=" * 50]
    headings = [line for line in lines if line and not line.startswith((" ", "="))]
    assert headings == [
        "NEURAL NETWORK EIGENVALUE ANALYSIS",
        "1. WEIGHT MATRICES:",
        "2. GRADIENT COVARIANCE:",
        "3. LOSS LANDSCAPE (Hessian):",
        "4. NEURAL COLLAPSE:",
        "FINDINGS (1 severe, 1 remark)",
        "ABOUT THIS REPORT",
    ]
    assert lines[-1] == "=" * 50


def test_missing_sections_say_why() -> None:
    text = summarize(made.only_weights())
    for heading in ("2. GRADIENT COVARIANCE:", "3. LOSS LANDSCAPE (Hessian):", "4. NEURAL COLLAPSE:"):
        assert f"{heading}\n   skipped: no loader" in text


def test_a_skipped_result_shows_its_reason_instead_of_empty_numbers() -> None:
    text = summarize(made.diagnosis(collapse=made.collapse(status="skipped", reason="float targets", nc1=float("nan"))))
    assert "4. NEURAL COLLAPSE:\n   skipped: float targets" in text
    assert "NC1" not in text


def test_weight_table() -> None:
    w = made.weights()
    text = summarize(w)
    rows = {line.split()[0]: line.split() for line in text.split("\n") if line.startswith("   ") and len(line.split()) > 8}
    first, low = w.spectrum("first.weight"), w.spectrum("low.weight")
    assert rows["first"][1:3] == ["linear", "40x24"]
    assert float(rows["first"][3]) == pytest.approx(first.s[0], rel=1e-2)
    assert "24/24" in rows["first"] and "5/12" in rows["low"]
    bound = low.metrics["spectral_norm"] / low.rank_tolerances["storage"]
    assert float(next(t for t in rows["low"] if t.startswith(">="))[2:]) == pytest.approx(bound, rel=1e-2)
    assert f"{100 * 7 / 12:.1f} %" in text
    assert f"±{first.power_law.stderr:.1f}" in text
    assert rows["zero"][-1] == "unresolved" and "zero.weight: unresolved: zero matrix" in text
    assert "skipped: vector: no spectrum: first.bias (40)" in text


def test_legends_explain_only_what_is_there() -> None:
    w = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    plain = squeezed(summarize(scan({"w": w}, progress=False)))
    assert "alpha: exponent" in plain and "spikes: values" in plain
    assert "condition '>='" not in plain and "f32/11b" not in plain
    small = squeezed(summarize(scan({"w": np.eye(3)}, progress=False)))
    assert "alpha: exponent" not in small and "rank: singular values" in small
    assert "condition '>='" in squeezed(summarize(made.weights()))


def test_a_baseline_shows_in_the_report() -> None:
    rng = np.random.default_rng(0)
    state = {f"{i}.weight": rng.standard_normal((12, 10)) for i in range(2)}
    spectra = scan(state, baseline={**state, "1.weight": np.eye(4)}, progress=False)
    text = squeezed(summarize(spectra))
    assert "baseline state dict: 1 of 2 matrices compared with theirs" in text
    assert "not compared: 12 x 10 here, 4 x 4 in the baseline: 1.weight (12x10)" in text
    one = summarize(spectra.matrices[0])
    row = next(line for line in one.split("\n") if line.split()[:2] == ["spectral", "norm"])
    assert row.split()[2] == row.split()[4], "value and baseline are the same matrix"
    assert "alpha weighted" in one and "log alpha norm" in one


def test_effective_precision_is_told() -> None:
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float16).astype(np.float32)
    assert "f32/11b" in summarize(made.weights({"half.weight": w}))


def test_long_tables_end_with_where_the_rest_is() -> None:
    small = np.random.default_rng(0).standard_normal((4, 4))
    text = squeezed(summarize(made.weights({f"layer.{i}.weight": small.copy() for i in range(310)})))
    assert "note: and 13 more matrices: to_pandas(), to_json() and save_html() list every one" in text


def test_skipped_tensors_are_grouped_by_reason() -> None:
    d = made.diagnosis(skipped=(*(Skipped(f"t{i}", "odd", (2, i)) for i in range(9)), Skipped("u", "strange")))
    text = squeezed(summarize(d))
    assert "skipped: 9 x odd: t0 (2x0), t1 (2x1), t2 (2x2), t3 (2x3), and 5 more" in text
    assert "skipped: strange: u" in text


def test_gradient_numbers() -> None:
    text = squeezed(summarize(made.gradients()))
    assert "31 samples x 50 parameters" in text and "loss 0.5000 (cross_entropy)" in text
    assert "noise scale 345.0 samples; 95 % interval 210.0 .. 777.0" in text
    assert "top 10 hold 87.5 %" in text
    assert "27 eigenvalues lie above the rounding noise" in text
    assert "a.weight 1.500 75.0 % 12.00 3.000" in text
    unresolved = made.gradients(noise_scale=np.inf, noise_scale_interval=(461.0, np.inf), centered=False)
    assert "noise scale not resolved; 95 % interval 461.0 .. inf" in squeezed(summarize(unresolved))
    assert "empirical Fisher" in summarize(unresolved)


def test_curvature_numbers_have_error_bars() -> None:
    c = made.curvature()
    text = squeezed(summarize(c))
    assert c.trace is not None
    half = stats.t.ppf(0.975, 3) * c.trace.stderr
    assert f"trace of H 112.5 ± 1.0; 95 % interval {112.5 - half:.1f} .. {112.5 + half:.1f} (hutchinson, 4 samples)" in text
    assert "1 14.0000 0.0014 15.0000 0.0015 -0.750000 7.5e-5 !" in text, "outermost first, the unconverged one marked"
    assert "2 9.00000 9.0e-4 9.50000 9.5e-4 -0.250000 2.5e-5" in text
    assert "!: not converged to 0.0010 x the largest |eigenvalue|" in text
    assert text.index("b.weight 72.5 ± 2.0 64.4 %") < text.index("a.weight 40.0 ± 1.0 35.6 %")
    assert "note: eval mode: dropout off" in text


def test_curvature_within_the_noise_is_marked_and_layers_are_named() -> None:
    names = tuple(f"layer{i}.weight" for i in range(14))
    mass = np.tile(np.linspace(1.0, 14.0, 14)[:, None] / 105.0, (1, 3))
    where = {"hessian_top": LayerMass(names=names, mass=mass, rayleigh=mass, error=0 * mass)}
    text = squeezed(summarize(made.curvature(value_floor=0.5, by_layer=where)))
    assert "-0.750000 7.5e-5 !" in text and "-0.250000 ~ 2.5e-5" in text and "~: within the noise of the products, not told from zero" in text
    assert "~" not in summarize(made.curvature()) and "by layer: " not in summarize(made.curvature())
    assert "layer13.weight 13.3 % 13.3 % 13.3 %" in text and "2 others 2.9 % 2.9 % 2.9 %" in text and "layer1.weight" not in text
    table = made.curvature(value_floor=0.5).to_pandas()
    assert table["unresolved"].dropna().tolist() == [False, False, False, True, False, False, False, False]


def test_density_histogram_holds_the_shares() -> None:
    lines = [line.split() for line in summarize(made.density()).split("\n") if "%" in line]
    shares = {tuple(words[:-2] if words[-1].startswith("#") else words[:-1]): words for words in lines}
    found = {" ".join(key[:-1]): float(key[-1]) for key in shares}
    assert found.pop("1.0 .. 10") == 25.0
    assert found.pop("|x| < 0.0010") == 25.0
    assert found.pop("-1.0 .. -0.10") == 50.0
    assert set(found.values()) == {0.0}
    assert next(words for words in lines if words[0] == "-1.0")[-1] == "#" * 50


def test_parts_that_an_interruption_left_out() -> None:
    c = made.curvature(hessian_bottom=None, density=None, trace=None, status="incomplete", reason="interrupted")
    text = squeezed(summarize(c))
    assert "status incomplete: interrupted" in text
    assert "skipped: eigenvalues of H, smallest: not computed" in text
    assert "trace of H not computed" in text


def test_collapse_numbers() -> None:
    text = squeezed(summarize(made.collapse()))
    assert "32 inputs of head" in text and "1,234 samples, 10 classes, 120 to 154 samples each" in text and "accuracy 98.8 %" in text
    for row in ("NC1 1.250", "CDNV 0.3750", "NC2 angles 0.1875", "NC2 ETF 0.5000", "NC3 0.4375", "NC4 0 "):
        assert row in text
    assert "no simplex ETF: C > d + 1" in squeezed(summarize(made.collapse(etf_exists=False)))


def test_findings_severest_first_and_complete() -> None:
    text = summarize(made.diagnosis())
    shown = "1. SEVERE low.weight: rank collapse evidence rank 5 of 12 compared random: 12 advice less weight decay source Martin 2018"
    assert shown in squeezed(text)
    assert text.index("SEVERE") < text.index("INFO")


def test_findings_that_say_the_same_stand_together() -> None:
    same = tuple(made.finding(where=f"layer{i}", evidence=f"rank {i} of 12") for i in range(3))
    text = squeezed(summarize(made.diagnosis(findings=same)))
    assert "FINDINGS (3 warnings)" in text
    assert "1. WARNING 3 places: rank collapse at layer0: rank 0 of 12 (random: 12) at layer1: rank 1 of 12 (random: 12)" in text
    assert text.count("less weight decay") == 1


def test_differing_advice_stands_with_its_place() -> None:
    two = (made.finding(where="a", advice="widen a"), made.finding(where="b", advice="widen b"))
    text = squeezed(summarize(made.diagnosis(findings=two)))
    assert "1. WARNING 2 places: rank collapse at a: rank 5 of 12 (random: 12; widen a) at b: rank 5 of 12 (random: 12; widen b) source Martin 2018" in text


def test_incomplete_is_said_first() -> None:
    lines = summarize(made.diagnosis(status="incomplete", reason="interrupted")).split("\n")
    assert lines[3] == "incomplete: interrupted"


def test_no_findings() -> None:
    assert "FINDINGS none: nothing was analysed" in squeezed(summarize(scan({"bias": np.zeros(3)}, progress=False)))
    text = squeezed(summarize(made.diagnosis(findings=())))
    assert "FINDINGS none: no threshold was crossed in weights, gradients, curvature, collapse" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_fit(width: int) -> None:
    for result in made.every_result().values():
        lines = summarize(result, width=width).split("\n")
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", sorted(made.every_result()))
def test_every_result_has_words(name: str) -> None:
    result = made.every_result()[name]
    text = summarize(result)
    assert text == str(result) == result.summary() == summarize(result), "deterministic"
    assert "backend" in text
    assert "nan" not in text.lower().replace("tenant", "")


def test_hostile_names_stay_on_their_line() -> None:
    d = made.diagnosis(
        model_name=made.HOSTILE,
        weights=made.weights({made.HOSTILE: np.eye(8)}),
        findings=(made.finding(where=made.HOSTILE, title=made.HOSTILE),),
        curvature=made.curvature(trace=made.trace((made.HOSTILE, "b")), notes=(made.HOSTILE,)),
        collapse=made.collapse(layer=made.HOSTILE),
        skipped=(Skipped(made.HOSTILE, made.HOSTILE),),
        notes=(made.HOSTILE,),
    )
    text = summarize(d)
    assert not set("\x1b\x07\u2028\u202e\r") & set(text)
    assert len(text.splitlines()) == text.count("\n") + 1
    assert "<script>" in text, "plain text escapes nothing else"


def test_unknown_class() -> None:
    with pytest.raises(TypeError, match=r"result: got dict; known: Ablation, Advice, CurvatureSpectra, Diagnosis"):
        summarize({})  # type: ignore[arg-type]
