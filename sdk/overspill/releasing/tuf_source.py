"""Files that change and have to be the newest: fetched through TUF. An extra.

A Sigstore trusted root or a trust policy, from a repository whose root of trust is a file that came
with the program or by hand. The ``tuf`` library checks signatures, thresholds, expiry and rollback.
"""

from __future__ import annotations

from pathlib import Path

from overspill.errors import ConfigurationError, LogInvalid, MissingExtra, TransportError


def fetch_by_tuf(name: str, repository: str, root: Path, cache: Path) -> bytes:
    """The newest file ``name`` of a TUF repository (metadata in ``/metadata``, files in
    ``/targets``). ``cache`` keeps what was seen, so that nothing older is taken later.

    Raises ``LogInvalid("tuf_rejected")`` for what the metadata do not vouch for, ``TransportError``
    when the repository cannot be reached, ``ConfigurationError``, ``MissingExtra``.
    """
    try:
        from tuf.api.exceptions import DownloadError, RepositoryError
        from tuf.ngclient.updater import Updater
    except ImportError as error:
        raise MissingExtra("TUF", "sigstore") from error
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        updater = Updater(
            metadata_dir=str(cache),
            metadata_base_url=f"{repository.rstrip('/')}/metadata/",
            target_dir=str(cache),
            target_base_url=f"{repository.rstrip('/')}/targets/",
            bootstrap=root.read_bytes(),
        )
        target = updater.get_targetinfo(name)
        if target is None:
            raise _rejected(repository, f"no file '{name}'")
        return Path(updater.download_target(target)).read_bytes()
    except DownloadError as error:
        raise TransportError(
            f"The TUF repository {repository} cannot be reached: {error}.", mend="Try again later."
        ) from error
    except RepositoryError as error:
        raise _rejected(repository, str(error)) from error
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be used: {error.strerror}.", mend="Check the path."
        ) from error


def _rejected(repository: str, why: str) -> LogInvalid:
    return LogInvalid(
        "tuf_rejected",
        expected=f"a file that {repository} vouches for",
        actual=" ".join(why.split())[:200],
    )
