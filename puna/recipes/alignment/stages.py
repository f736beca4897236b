"""The stages that there are, one line each."""

from __future__ import annotations

from puna.recipes.alignment import making, tuning
from puna.recipes.alignment.loop import Kind

STAGES: dict[str, Kind] = {
    "sft": Kind(tuning.fine_tuning, tuning.SFTOptions, ("sft",), is_model=True),
    "reward": Kind(tuning.reward_model, tuning.RewardOptions),
    "ppo": Kind(tuning.policy_optimization, tuning.PPOOptions, ("prompts",), is_model=True),
    "preferences": Kind(making.preferences, making.PreferencesOptions, ("prompts",)),
    "rejection_sampling": Kind(making.rejection, making.RejectionOptions, ("prompts",)),
    "gatt": Kind(making.ghost_attention, making.GattOptions, ("prompts",)),
    "obedience": Kind(making.measure_obedience, making.ObedienceOptions, ("prompts",)),
    "safety_distillation": Kind(making.distillation, making.DistillationOptions, ("red_team",)),
}
