"""Tables of finished trials: read as written, refused with their row."""

import re

import pytest
from search_studies import (
    DECAY,
    ETA,
    LR,
    MIXED,
    PUBLISHED,
    TMAX,
    inside,
    published,
)

from engine.search import import_table
from pipelines.errors import UserError

HEADER = "lr,weight_decay,T_max,eta_min,hmean,epochs"


ROW = "1e-4,4e-5,15,1e-5,0.97,15"


def read(tmp_path, *lines, space=PUBLISHED, metric="val/hmean"):
    path = tmp_path / "study.csv"
    path.write_text("\n".join(lines) + "\n")
    return import_table.read(path, space, metric)


def test_the_published_rows(tmp_path):
    study = published(tmp_path)
    assert [t.name[-4:] for t in study.trials] == ["0748", "0251", "0927", "1403", "1858", "2037", "0132", "0311"]
    best = study.incumbent()
    assert (best.number, best.value, best.scores["recall"]) == (1, 0.97561, 0.97748)
    assert best.values == {LR: 9.98e-05, DECAY: 3.98e-05, TMAX: 15, ETA: 1.11e-05}
    assert [t.state for t in study.trials].count("stopped") == 4
    assert (study.max_epochs, study.budget, {t.kind for t in study.trials}) == (15, 8, {"imported"})


@pytest.mark.parametrize("title", ["hmean", "val/hmean", "Val H-mean", "H-mean", "val_hmean"])
def test_spellings_of_a_header(tmp_path, title):
    header = f"Run Name,LR,Weight Decay,T max,models.scheduler.eta_min,{title},Epochs,Test"
    (trial,) = read(tmp_path, header, "a,1e-4,4e-5,15,1e-5,0.97,15,0.9")
    assert (trial.value, trial.values[DECAY], trial.values[TMAX], trial.state) == (0.97, 4e-5, 15, "finished")


def test_states_follow_from_epochs_and_values_unless_given(tmp_path):
    trials = read(tmp_path, HEADER, ROW, "1e-4,4e-5,15,1e-5,0.96,5", "1e-4,4e-5,15,1e-5,,3")
    assert [t.state for t in trials] == ["finished", "stopped", "infeasible"]
    assert trials[2].value is None
    (trial,) = read(tmp_path, HEADER + ",state", ROW + ",stopped")
    assert trial.state == "stopped"


def test_a_column_order_sorts_and_numbers_count_from_zero(tmp_path):
    trials = read(tmp_path, "name,order," + HEADER, f"b,7,{ROW}", f"a,2,{ROW}")
    assert [(t.name, t.number) for t in trials] == [("a", 0), ("b", 1)]


def test_values_beyond_the_space_are_kept(tmp_path):
    (trial,) = read(tmp_path, HEADER, "1e-3,4e-5,12,1e-5,0.97,15")
    assert (trial.values[LR], trial.values[TMAX]) == (1e-3, 12)
    assert not inside(PUBLISHED, trial.values)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER.replace("eta_min", "eta")], "at least one row"),
        ([HEADER.replace("eta_min", "eta"), ROW], "no column models.scheduler.eta_min; the header has lr"),
        ([HEADER.replace("hmean", "f1"), ROW], "no column val/hmean"),
        ([HEADER + ",models.optimizer.lr", ROW + ",1e-4"], "lr and models.optimizer.lr mean the same"),
        ([HEADER, ROW, ROW.replace("1e-4", "fast")], "row 2: models.optimizer.lr fast is no number"),
        ([HEADER, ROW.replace("15,1e-5", ",1e-5")], "row 1: models.scheduler.T_max is empty"),
        ([HEADER, ROW, ROW + ",1"], "row 2 has 7 cells, the header 6"),
        ([HEADER, ROW.replace("0.97", "nan")], "row 1: val/hmean nan is not finite"),
        ([HEADER + ",state", ROW + ",crashed"], "row 1: state crashed is none of"),
        ([HEADER + ",state", ROW.replace("0.97", "") + ",finished"], "row 1: a finished trial needs a value"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(tmp_path, lines, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, *lines)


def test_a_choice_is_checked_and_no_table_is_a_plain_error(tmp_path):
    with pytest.raises(UserError, match=r"row 1: models.optimizer.name lion is none of adam, adamw, sgd"):
        read(tmp_path, "lr,name,batch_size,loss", "1e-3,lion,4,0.3", space=MIXED, metric="val/loss")
    with pytest.raises(UserError, match="cannot be read"):
        import_table.read(tmp_path / "none.csv", PUBLISHED)
    (tmp_path / "sheet.csv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        import_table.read(tmp_path / "sheet.csv", PUBLISHED)


def test_a_row_that_was_stopped_is_carried_on_with_its_uncertainty(tmp_path):
    study = published(tmp_path)
    for trial in study.trials:
        if trial.state == "finished":
            assert trial.estimate is None
            continue
        mean, sd = trial.estimate
        assert trial.value < mean < trial.value + 0.01
        assert 0.001 < sd < 0.006
    loss = read(tmp_path, HEADER, ROW, "1e-4,4e-5,15,1e-5,0.97,5")
    assert [t.state for t in loss] == ["finished", "stopped"]
    trials = import_table.read(tmp_path / "study.csv", PUBLISHED, goal="minimize")
    assert trials[1].estimate[0] < trials[1].value
