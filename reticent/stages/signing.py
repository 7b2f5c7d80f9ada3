"""A signature over the report of a run and all that it was made from."""

from pathlib import Path

from reticent.errors import RunError
from reticent.reports import signature
from reticent.run import Run


def sign(run: Run, key: Path) -> str:
    """Signs the report with the private key in ``key``, which is made if there is none; returns what was done.

    Raises:
        RunError: there is no report yet.
        PrivacyError: the key is none that can sign.
    """
    if not run.finished("report"):
        raise RunError(f"{run.folder} has no report to sign; make it with: reticent run {run.folder}")
    made = not key.exists()
    if made:
        signature.new_key(key)
    run.write_signature(signature.sign(key, signature.digests(run.signed_files())))
    fresh = f"made the key {key} (keep it secret) and {key}.pub; " if made else ""
    return f"{fresh}signed {run.report_path} and what it was made from: {run.signature_path}"


def verify(run: Run, key: Path | None) -> str:
    """Compares every signed file with its digest, and the signer with ``key``, a public key; returns who signed when.

    Raises:
        RunError: there is no signature, or a file is missing.
        PrivacyError: a file was changed, or somebody else signed.
    """
    if not run.signature_path.exists():
        raise RunError(f"{run.folder} is not signed; sign it with: reticent report {run.folder} --sign KEY")
    signed = signature.verify(run.signature_path.read_bytes(), signature.digests(run.signed_files()), key)
    whose = "" if key is not None else "; whose key that is, only --key can tell"
    whose = "" if signed.trusted else "; whose key that is, only --key can tell"
    return f"the signature holds: {len(signed.files)} files as they were on {signed.time}, by key {signed.key}{whose}"
