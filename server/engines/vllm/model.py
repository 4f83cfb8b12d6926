"""Voxtral Realtime with a transcription delay per stream, as vLLM loads it in its model processes.

vLLM's own class knows one delay, read from the tokenizer's file, which conditions the text decoder in every step. Here each audio frame
carries the delay of its stream (in tokens) as one sample behind its own. ``embed_multimodal`` takes it off and adds it to every
row of the embedding as one more column, so that it reaches ``forward`` through vLLM's buffers, whatever requests share a batch; there it
becomes a condition per token.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models import voxtral_realtime as original
from vllm.multimodal import MULTIMODAL_REGISTRY

from server.engines.vllm.mark import MARK_SCALE


@MULTIMODAL_REGISTRY.register_processor(
    original.VoxtralRealtimeMultiModalProcessor,
    info=original.VoxtralRealtimeProcessingInfo,
    dummy_inputs=original.VoxtralDummyInputsBuilder,
)
class PerStreamDelayVoxtral(original.VoxtralRealtimeGeneration):  # type: ignore[misc]
    """See the module."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Rows of the audio embedding, ``pool`` positions each, every position with the delay as its last column."""
        audios = kwargs.get("audio_arrays")
        if audios is None:
            return super().embed_multimodal(**kwargs)
        if isinstance(audios, torch.Tensor):
            audios = list(audios.unbind(0))
        delays = [torch.round(audio[-1].float() * MARK_SCALE).clamp(0, MARK_SCALE) for audio in audios]
        embedded = super().embed_multimodal(audio_arrays=[audio[:-1] for audio in audios])
        pool = self.config.audio_config.block_pool_size
        marked = []
        for rows, delay in zip(embedded, delays, strict=True):
            count = rows.shape[0]
            positions = rows.view(count, pool, -1)
            column = delay.to(rows.dtype).expand(count, pool, 1)
            marked.append(torch.cat([positions, column], -1).reshape(count, -1))
        return marked

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The audio embedding itself; zeros of the wider shape where it is missing."""
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            audio = self.config.audio_config
            width = (audio.d_model + 1) * audio.block_pool_size
            return torch.zeros(input_ids.shape[0], width, dtype=self.whisper_encoder.dtype, device=input_ids.device)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,  # noqa: ARG002 - vLLM's signature
    ) -> Any:
        """As the original's, with the time condition made from the last column."""
        assert inputs_embeds is not None
        assert input_ids is not None
        pool = self.config.audio_config.block_pool_size
        rows = inputs_embeds.view(inputs_embeds.shape[0] * pool, inputs_embeds.shape[1] // pool)
        delays = rows[::pool, -1]
        heard = self.whisper_encoder.whisper_encoder(
            rows[:, :-1].contiguous(), original._expand_tensor(positions, pool)
        )
        heard = heard.reshape(heard.shape[0] // self.downsample_factor, heard.shape[1] * self.downsample_factor)
        embeds = self.audio_language_adapter(heard) + self.language_model.embed_input_ids(input_ids)
        return self.language_model.model(
            input_ids,
            positions,
            intermediate_tensors,
            inputs_embeds=embeds,
            t_cond=self.time_embedding(delays),
        )
