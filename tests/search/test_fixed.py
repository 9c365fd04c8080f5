"""A policy from a file is built again, or refused in one message."""

from qdit.policies import LayerSpec, Policy
from qdit.quant.spec import QuantSpec
from qdit.search import Fixed
from qdit.search.budget import MeanGroup
from qdit.search.space import uniform_policy


def problems(parts, model, **changes) -> list[str]:
    return parts.recipe(**changes).problems(model.sites())


def fixed_problems(parts, model, policy: Policy, path, at_least=1, **changes) -> list[str]:
    policy.save(path)
    search = Fixed(policy=str(path), budget=MeanGroup(at_least=at_least))
    return problems(parts, model, search=search, **changes)


def test_policies_that_do_not_fit_are_refused_in_one_message(parts, tiny_model, tmp_path):
    path, sites = tmp_path / "policy.yaml", tiny_model.sites()
    policy = uniform_policy(parts.recipe(), sites, 16)
    assert fixed_problems(parts, tiny_model, policy, path) == []

    (over,) = fixed_problems(parts, tiny_model, policy, path, at_least=32)
    assert "is over the budget: it has mean group size 16, mean group size 32 is asked" in over

    unknown = Policy({**policy, "transformer_blocks.7.attn1.to_q": next(iter(policy.values()))})
    (message,) = fixed_problems(parts, tiny_model, unknown, path)
    assert "sites unknown here: transformer_blocks.7.attn1.to_q" in message

    (message,) = fixed_problems(parts, tiny_model, policy, path, weight_bits=3)
    assert "use the recipe it was made with" in message
    assert "bits=4" in message
    assert "bits=3" in message

    name = "transformer_blocks.0.attn1.to_k"
    untied = Policy({**policy, name: uniform_policy(parts.recipe(), sites, 8)[name]})
    (message,) = fixed_problems(parts, tiny_model, untied, path)
    assert "read one input but differ" in message

    spec = QuantSpec(bits=4, granularity="group", group_size=16, dynamic=False)
    half = Policy({**policy, "transformer_blocks.0.attn1.to_out.0": LayerSpec(weight=spec, activation=None)})
    assert "this recipe makes" in fixed_problems(parts, tiny_model, half, path)[0]

    missing = Policy(list(policy.items())[1:])
    assert "sites missing" in fixed_problems(parts, tiny_model, missing, path)[0]


def test_a_policy_that_is_not_there_is_named(parts, tiny_model, tmp_path):
    search = Fixed(policy=str(tmp_path / "policy.yaml"), budget=MeanGroup())
    (message,) = problems(parts, tiny_model, search=search)
    assert "policy.yaml does not exist; give a policy.yaml, or a run directory with one" in message
    (tmp_path / "policy.yaml").write_text("policy: 3\n")
    (message,) = problems(parts, tiny_model, search=search)
    assert "is not a policy file" in message
