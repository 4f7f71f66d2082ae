import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from train.health_record import Durations, EpochHealth, Usage
from train.health_rules import Finding
from train.phase_clock import summarize_durations
from train.profile_plots import PHASE_COLORS, draw_phases, draw_usage, format_s, median_step_s, usage_over_time
from train.profile_report import phase_totals, write_profile

HOSTILE = '</table><script>alert(1)</script>"&'
FINDING = Finding(
    rule="input_bound",
    severity="warn",
    saw=f"67% of the time {HOSTILE}",
    epoch=2,
    step=21,
    advice="store the photos first",
    value=0.67,
    threshold=0.5,
)


def epoch_of(number: int, *, device: str = "cpu", gpu: bool = False, started: float = 0.0) -> EpochHealth:
    seconds = [started + 1.0, started + 2.0]
    return EpochHealth(
        epoch=number,
        first_step=20 * number - 19,
        wall_s=3.0,
        device=device,
        phases={"wait": 1.0, "forward": 0.5, "backward": 0.75, "validation": 0.5, "other": 0.24, "monitor": 0.01},
        sampled_phases={"forward": 0.1, "backward": 0.3, "monitor": 0.2},
        first_wait_s=0.1,
        startup_s=None,
        longest_gap_s=0.2,
        gap_step=1,
        steps=summarize_durations([0.1] * 19 + [0.4], 20 * number - 19),
        samples=[],
        class_rows=[10, 10],
        usage=Usage(seconds=seconds, cpu=[0.5, 0.6], memory=[0.1, 0.1], gpu=[0.2, 0.3] if gpu else []),
    )


def written(epochs: list[EpochHealth], findings: list[Finding], folder: Path) -> str:
    path = folder / "profile.html"
    write_profile([epoch.to_dict() for epoch in epochs], findings, path)
    return path.read_text()


class Page(HTMLParser):
    """Collects tags and checks that each is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    parsed = Page(written([epoch_of(1), epoch_of(2)], [FINDING], tmp_path))
    names = [name for name, _ in parsed.tags]
    assert names.count("h1") == 1
    assert names.count("img") == 3
    assert not {"script", "link", "iframe"} & set(names)
    for _, attributes in parsed.tags:
        for value in (attributes[name] for name in ("src", "href") if attributes.get(name)):
            assert str(value).startswith(("data:image/png", "#"))
    anchors = {str(attributes["href"])[1:] for name, attributes in parsed.tags if name == "a"}
    assert anchors == {attributes["id"] for name, attributes in parsed.tags if name == "section"}
    assert [path.name for path in tmp_path.iterdir()] == ["profile.html"]


def test_findings_stand_at_the_top_as_text(tmp_path: Path) -> None:
    page = written([epoch_of(1), epoch_of(2)], [FINDING], tmp_path)
    assert page.index("store the photos first") < page.index('id="phases"')
    assert "epoch 2, step 21" in page
    assert "<script>" not in page
    assert "No rule found a fault" in written([epoch_of(1)], [], tmp_path)


def test_the_table_of_phases_adds_up(tmp_path: Path) -> None:
    page = written([epoch_of(1), epoch_of(2)], [], tmp_path)
    assert phase_totals([epoch_of(1), epoch_of(2)])["wait"] == 2.0
    shares = [float(share) for share in re.findall(r"([\d.]+)%</td></tr>", page)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert '<th scope="row">wait</th><td>waiting for the next batch</td><td class="n">2 s</td>' in page
    assert "largest part is wait with 33.3%" in page


def test_a_gpu_has_a_table_of_its_own_without_the_measurement(tmp_path: Path) -> None:
    page = written([epoch_of(1, device="cuda", gpu=True)], [], tmp_path)
    own = page[page.index("Where the GPU's time goes") :]
    assert '<th scope="row">forward</th><td class="n">25.0%</td>' in own
    assert "libnvidia-ml" not in page
    assert "libnvidia-ml" in written([epoch_of(1, device="cuda")], [], tmp_path)
    assert "GPU" not in written([epoch_of(1)], [], tmp_path).split("<main>")[1].replace("CPU, memory and GPU", "")


def test_bars_stack_the_phases_of_each_epoch() -> None:
    axes = Figure().subplots()
    draw_phases(axes, [epoch_of(1), epoch_of(2)])
    assert max(bar.get_y() + bar.get_height() for bar in axes.patches) == pytest.approx(3.0)
    assert [handle.get_text() for handle in axes.get_legend().get_texts()][-1] == "wait"
    assert len(set(PHASE_COLORS.values())) == len(PHASE_COLORS)


def test_a_worker_that_was_started_again_goes_on_in_time() -> None:
    history = [epoch_of(1, gpu=True), epoch_of(2, gpu=True, started=2.0), epoch_of(3, gpu=True)]
    seconds, shares = usage_over_time(history, "gpu")
    assert seconds == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert shares == [0.2, 0.3] * 3
    axes = Figure().subplots()
    draw_usage(axes, history)
    assert len(axes.lines) == 3


def test_the_median_is_that_of_all_steps_to_a_bin() -> None:
    assert median_step_s([epoch_of(1), epoch_of(2)]) == pytest.approx(0.1, rel=0.12)
    assert median_step_s([]) == 0


def test_an_epoch_without_a_step_is_shown(tmp_path: Path) -> None:
    empty = Durations(num=0, mean_s=0.0, std_s=0.0, median_s=0.0, longest=[], histogram={})
    Page(written([replace(epoch_of(1), steps=empty)], [], tmp_path))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0334, "33.4 ms"), (2.5, "2.5 s"), (754.0, "754 s"), (7200.0, "120 min"), (0.0, "0 ms")]
)
def test_seconds_are_short(seconds: float, shown: str) -> None:
    assert format_s(seconds) == shown
