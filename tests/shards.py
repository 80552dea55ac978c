"""What a shard folder holds, document by document."""

from typing import Any

from numpy.typing import NDArray

from cygnet.text.shards import ShardReader

Document = tuple[NDArray[Any], NDArray[Any] | None]


def stored_documents(reader: ShardReader) -> list[Document]:
    """Return the ids of each document, and which of them are learnt, over all shards."""
    return [
        (shard.tokens[begin:end], None if shard.labels is None else shard.labels[begin:end])
        for shard in reader.shards
        for begin, end in zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True)
    ]
