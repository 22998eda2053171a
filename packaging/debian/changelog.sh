#!/bin/bash
# Writes Debian's changelog of a revision ($1): what changed for users is in CHANGELOG.md.
#
# The date is that of the sources, so that the same sources give the same package.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' daemon/Cargo.toml)
seconds=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || stat -c %Y CHANGELOG.md)}
cat <<END
rowd ($version-$1) unstable; urgency=medium

  * Changes for users: /usr/share/doc/rowd/changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$seconds")
END
