"""The baselines' options, with the numbers that papers and official codes have."""

import math

import pytest

from mjx_qflex import algos

PUBLISHED = {
    ("sac", "default"): {
        "width": 256, "depth": 2, "activation": "relu", "learning_rate": 3e-4, "gamma": 0.99,
        "tau": 0.005, "reward_scale": 1.0, "target_entropy": -1.0, "tanh_correction": True,
    },
    ("sac", "qflex_paper"): {
        "width": 256, "depth": 3, "activation": "gelu", "learning_rate": 3e-4, "tau": 0.005,
        "reward_scale": 0.2, "initial_alpha": math.exp(1), "target_entropy": -1.0,
        "tanh_correction": False, "log_std_range": (-20.0, 0.5),
    },
    ("crossq", "default"): {
        "width": 256, "critic_width": 2048, "depth": 2, "learning_rate": 1e-3, "beta1": 0.5,
        "policy_delay": 3, "tanh_correction": True, "renorm_warmup": 100_000,
    },
    ("crossq", "qflex_paper"): {
        "width": 256, "critic_width": None, "depth": 3, "learning_rate": 3e-4, "beta1": 0.5,
        "policy_delay": 1, "reward_scale": 1.0, "initial_alpha": 1.0, "target_entropy": -1.0,
        "tanh_correction": False, "stale_critic": True,
    },
    ("sdac", "default"): {
        "activation": "mish", "learning_rate": 3e-4, "final_learning_rate": 3e-5, "delay": 2,
        "decay_begin": 25_000, "decay_updates": 50_000, "tau": 0.005, "reward_scale": 0.2,
        "value_scale": 5.0, "diffusion_steps": 20, "schedule_scale": 0.8, "start_scale": 0.5,
        "particles": 32, "reverse_samples": 64, "noise_scale": 0.1, "initial_alpha": 5.0,
        "target_entropy": -0.9, "alpha_learning_rate": 7e-3, "alpha_period": 250,
    },
    ("sdac", "qflex_paper"): {"alpha_learning_rate": 3e-4, "reward_scale": 0.2, "particles": 32},
    ("dacer", "default"): {
        "learning_rate": 1e-4, "delay": 2, "reward_scale": 0.2, "diffusion_steps": 20,
        "schedule": "variance_preserving", "start_scale": 1.0, "noise_scale": 0.15,
        "initial_alpha": 3.0, "alpha_learning_rate": 3e-2, "alpha_period": 10_000,
        "target_entropy": -0.9, "entropy_samples": 200,
    },
    ("dacer", "qflex_paper"): {
        "learning_rate": 3e-4, "activation": "mish", "schedule": "linear", "schedule_scale": 0.3,
        "start_scale": 0.5, "reward_scale": 0.2, "noise_scale": 0.15, "alpha_learning_rate": 3e-2,
        "final_learning_rate": 3e-5, "decay_begin": 25_000, "decay_updates": 50_000,
    },
    ("qsm", "default"): {
        "width": 512, "depth": 2, "sampler": "diffusion", "diffusion_steps": 5,
        "gradient_scale": 50.0, "action_noise": 0.1, "decay_updates": 2_000_000,
        "reward_scale": 1.0, "tau": 0.005,
    },
    ("qsm", "qflex_paper"): {
        "width": 256, "depth": 3, "activation": "relu", "learning_rate": 3e-4,
        "sampler": "langevin", "diffusion_steps": 20, "particles": 32, "gradient_scale": 1.0,
        "reward_scale": 1.0, "tau": 0.005, "first": "critics", "decay": "linear",
        "final_learning_rate": 3e-5, "decay_begin": 25_000, "decay_updates": 50_000,
    },
    # Stable-Baselines3 weighs the squared error by 0.5, brax half of it.
    ("ppo", "qflex_paper"): {
        "width": 64, "depth": 2, "learning_rate": 3e-5, "gamma": 0.99, "gae_lambda": 0.95,
        "clipping_epsilon": 0.2, "entropy_cost": 0.0, "value_coefficient": 1.0,
        "max_grad_norm": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_settings_are_the_published_ones(name, preset):
    config = vars(algos.entry(name).presets[preset])
    expected = PUBLISHED[name, preset]
    assert {key: config[key] for key in expected} == expected
