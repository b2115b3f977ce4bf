"""The policies that ship do what their cards say."""

import jax
import numpy as np
import pytest

from mjx_qflex.runner import assessment, driver, policies

EPISODES = 8  # of the card's 64: world i starts alike whatever their number
NAMES = policies.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_policy_is_held_to_its_card(name):
    folder = policies.find(name)
    policy = policies.read(folder)
    assert {"command", "commit", "machine", "licence", "transitions"} <= set(policy.card)
    assert (folder / "README.md").is_file()
    card = assessment.load(folder)
    env, algorithm = driver.build(policy.config)
    learner = policies.learner_of(policy, algorithm)  # refuses other actions than the recorded ones

    programs = assessment.make_programs(env, algorithm, EPISODES)
    key = assessment.evaluation_key(card["seed"])
    played = jax.device_get(programs.evaluate(learner, key))
    # A walk is chaotic: other processors may end a single episode elsewhere.
    recorded = np.array(card["policies"]["trained"]["lengths"][:EPISODES])
    assert np.mean(played.length) > 0.8 * np.mean(recorded)
    assert np.sum(played.length >= env.episode_length) >= np.sum(recorded >= env.episode_length) - 2
