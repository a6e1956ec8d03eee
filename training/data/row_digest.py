"""What tells whether the rows of a database or of the hub are those of before."""

import hashlib

import pyarrow as pa


class RowDigest:
    """A digest of rows that come table by table.

    Args:
        ordered: their order counts; where it means nothing, a database may give another each time.
    """

    def __init__(self, ordered: bool) -> None:
        self.sum = 0
        self.chain = hashlib.sha256() if ordered else None
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Takes the next rows."""
        columns = [column.to_pylist() for column in table.columns]
        for row in zip(*columns, strict=True):
            one = hashlib.sha256(repr(row).encode("utf-8", "surrogatepass")).digest()
            if self.chain is not None:
                self.chain.update(one)
            else:
                self.sum += int.from_bytes(one)
        self.rows += table.num_rows

    def hex(self, schema: pa.Schema) -> str:
        """The digest of all rows, whose columns are these."""
        names = [f"{name}:{kind}" for name, kind in zip(schema.names, schema.types, strict=True)]
        rows = f"{self.sum % 2**256:064x}" if self.chain is None else self.chain.hexdigest()
        return hashlib.sha256(f"{rows} {self.rows} {names}".encode()).hexdigest()
