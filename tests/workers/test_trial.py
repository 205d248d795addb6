from __future__ import annotations

import pickle

import pytest

from spd_core.law import Choice, Plain
from spd_core.pairs.pair import PairError
from workers.records import PairSettings, TrialTask
from workers.trial import Trier


@pytest.fixture
def pair_settings(settings):
    return PairSettings(**{name: getattr(settings, name) for name in PairSettings.model_fields})


def test_a_trier_measures_real_requests_and_writes_nothing(pair_settings, task, tmp_path):
    trier = Trier(pickle.loads(pickle.dumps(pair_settings)))
    facts = trier.ready()
    assert set(facts) == {"hostname", "machine", "device", "threads", "torch"}
    assert (facts["device"], facts["threads"]) == ("cpu", "1")
    given = TrialTask(choice=Choice(method=Plain(), batch=4), labels=task.labels, seeds=task.seeds, limit_s=60.0)
    trial = pickle.loads(pickle.dumps(trier.run(pickle.loads(pickle.dumps(given)))))
    assert trial.images == 6 and trial.images_per_s > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"), [({"pair": "nowhere"}, "got 'nowhere'"), ({"pair_sha256": {}}, "allowed: none")]
)
def test_a_trier_with_another_pair_says_so(pair_settings, change, message):
    with pytest.raises(PairError, match=message):
        Trier(pair_settings.model_copy(update=change)).ready()
