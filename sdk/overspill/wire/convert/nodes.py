"""What a node tells of itself: model cards, replicas and evidence."""

from __future__ import annotations

from collections.abc import Iterable

from overspill.types.card import ModelCard
from overspill.types.evidence import Evidence, EvidenceBundle
from overspill.types.replicas import ReplicaList
from overspill.wire.v1 import chat_pb2, trust_pb2


def card_to_proto(card: ModelCard, *, local: bool = False) -> chat_pb2.ModelCard:
    """Encode a model card. Only ``local`` ones tell of the machine's memory."""
    return chat_pb2.ModelCard(
        name=card.name,
        context=card.context,
        runtime=card.runtime,
        quantization=card.quantization,
        parameters=card.parameters,
        size_bytes=card.size_bytes,
        sha256=card.sha256,
        tools=card.tools,
        json_schema=card.json_schema,
        modalities=card.modalities,
        languages=card.languages,
        skill_accuracy=dict(card.skill_accuracy),
        price_prompt_per_mtok=card.price_prompt_per_mtok,
        price_completion_per_mtok=card.price_completion_per_mtok,
        memory_bytes=card.memory_bytes if local else 0,
        notes=card.notes if local else (),
        tokenizer=card.tokenizer,
    )


def card_from_proto(message: chat_pb2.ModelCard) -> ModelCard:
    """Decode a model card."""
    return ModelCard(
        name=message.name,
        context=message.context,
        runtime=message.runtime,
        quantization=message.quantization,
        parameters=message.parameters,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        tools=message.tools,
        json_schema=message.json_schema,
        modalities=tuple(message.modalities),
        languages=tuple(message.languages),
        skill_accuracy=dict(message.skill_accuracy),
        price_prompt_per_mtok=message.price_prompt_per_mtok,
        price_completion_per_mtok=message.price_completion_per_mtok,
        memory_bytes=message.memory_bytes,
        notes=tuple(message.notes),
        tokenizer=message.tokenizer,
    )


def cards_to_bytes(cards: Iterable[ModelCard]) -> bytes:
    """A serialised list of cards: the bytes that the node signs."""
    return trust_pb2.CardList(cards=[card_to_proto(c) for c in cards]).SerializeToString(
        deterministic=True
    )


def replicas_to_bytes(replicas: ReplicaList) -> bytes:
    """A serialised list of replicas: the bytes that a node signs."""
    return trust_pb2.ReplicaList(
        replicas=[trust_pb2.Replica(address=address) for address in replicas.addresses],
        issued_unix=replicas.issued_unix,
        valid_s=replicas.valid_s,
    ).SerializeToString(deterministic=True)


def cards_from_bytes(data: bytes) -> tuple[ModelCard, ...]:
    """Inverse of :func:`cards_to_bytes`."""
    return tuple(card_from_proto(m) for m in trust_pb2.CardList.FromString(data).cards)


def bundle_to_proto(bundle: EvidenceBundle) -> trust_pb2.EvidenceBundle:
    """Encode an evidence bundle."""
    return trust_pb2.EvidenceBundle(
        node_key_config=bundle.node_key_config,
        evidence=[
            trust_pb2.Evidence(type=e.type, data=e.data, collateral=dict(e.collateral))
            for e in bundle.evidence
        ],
        release=bundle.release,
        release_proof=bundle.release_proof,
        measured_log=bundle.measured_log,
        gpu_claims_digest=bundle.gpu_claims_digest,
        freshness_anchor=bundle.freshness_anchor,
    )


def bundle_from_proto(message: trust_pb2.EvidenceBundle) -> EvidenceBundle:
    """Decode an evidence bundle; nothing in it is believed yet."""
    return EvidenceBundle(
        node_key_config=message.node_key_config,
        evidence=tuple(Evidence(e.type, e.data, dict(e.collateral)) for e in message.evidence),
        release=message.release,
        release_proof=message.release_proof,
        measured_log=tuple(message.measured_log),
        gpu_claims_digest=message.gpu_claims_digest,
        freshness_anchor=message.freshness_anchor,
    )
