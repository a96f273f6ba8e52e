"""Trainer, PEFT and TRL train an exported model, by the loss that the model itself has."""
# ruff: noqa: F401, F811 (imported fixtures)

import inspect
import math

import pytest
import torch
from ecosystem.tiny_export import MARKS, exported, model, run, tok

from reso_llm.stages.ngrams import FOLDS

pytestmark = MARKS
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]
LAYERS = ["up", "down", "out", "inputs", "project", "turn", "read"]


def rows(count=12, length=20):
    """Rows of a text that the memory has counted, each with the span that it is from."""
    text = torch.randint(5, 261, (count, length), generator=torch.Generator().manual_seed(0))
    folds = torch.arange(count) * FOLDS // count
    return text, [
        {"input_ids": ids, "labels": ids, "fold": fold}
        for ids, fold in zip(text.tolist(), folds.tolist(), strict=True)
    ]


def trainer_of(model, directory):
    from transformers import Trainer, TrainingArguments

    text, data = rows()
    model.network.fit_bindings(text.flatten().numpy())
    arguments = TrainingArguments(
        str(directory), per_device_train_batch_size=2, max_steps=6, save_steps=3,
        learning_rate=1e-3, use_cpu=True, report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=data)


def test_trainer_goes_on_where_it_stopped(model, exported, tmp_path):
    """Six steps are three and, from the checkpoint, three more; every row brings its fold."""
    from transformers import AutoModelForCausalLM

    seen, forward = [], model.forward
    model.forward = lambda *a, fold=None, **k: (seen.append(fold), forward(*a, fold=fold, **k))[1]
    model.forward.__signature__ = inspect.signature(forward)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer_of(model, tmp_path).train()
    assert len(seen) == 6
    assert all(fold.shape == (2,) for fold in seen)
    assert not torch.equal(before["network.embedding.table.weight"],
                           model.network.embedding.table.weight)  # fmt: skip

    again = AutoModelForCausalLM.from_pretrained(exported)
    trainer_of(again, tmp_path / "again").train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    for name, p in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), p, rtol=1e-5, atol=1e-6, msg=name)

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.equal(t, saved.state_dict()[n]) for n, t in model.state_dict().items())


def test_lora_reaches_every_layer(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LAYERS, lora_dropout=0.0))
    ids = rows()[0][:2]
    adapted(input_ids=ids, labels=ids).loss.backward()
    found = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name}
    kinds = {name.split(".lora_B")[0].rsplit(".", 1)[1] for name in found}
    assert kinds == set(LAYERS)
    assert [name for name, grad in found.items() if grad is None or not grad.any()] == []
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(
            adapted.merge_and_unload()(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4
        )


def options(directory, **more):
    return dict(
        output_dir=str(directory), max_steps=2, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], disable_tqdm=True, learning_rate=1e-3, bf16=False,
        gradient_checkpointing=False, logging_steps=1, **more,
    )  # fmt: skip


def test_sft_trains_by_the_model_s_own_loss(model, tok, tmp_path):
    """Two steps. Guards evidence and echo: TRL takes hidden states times the head for logits."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chats = [{"messages": [*CHAT[:1], {"role": "assistant", "content": "Hello" + "!" * n}]}
             for n in range(4)]  # fmt: skip
    arguments = SFTConfig(**options(tmp_path, assistant_only_loss=True))
    trainer = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(chats), processing_class=tok
    )
    batch = next(iter(trainer.get_train_dataloader()))
    batch = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    assert (batch["labels"] == -100).any()
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        own = model(**inputs).loss
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), own)
        model.network.echo.silence()
        assert abs(own - trainer.compute_loss(model, dict(batch))) > 1e-4
    assert trainer.train().global_step == 2


def test_dpo_prefers(model, tok, tmp_path):
    """The first loss is ln 2, as policy and reference are one model; then it falls."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pair = {"prompt": CHAT[:1], "chosen": CHAT[1:],
            "rejected": [{"role": "assistant", "content": "Go away"}]}  # fmt: skip
    trainer = DPOTrainer(
        model, args=DPOConfig(**options(tmp_path)), processing_class=tok,
        train_dataset=Dataset.from_list([pair] * 4),
    )  # fmt: skip
    assert trainer.train().global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[1] < losses[0]
