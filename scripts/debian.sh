# The sources of Debian's packages, for the scripts in this directory, which source this file.
# shellcheck shell=bash
# shellcheck disable=SC2016  # Formats of apt, which have their own variables.

# The host's own Debian sources, in the one-line form, so that a mirror that was chosen for this
# machine is used here too.
sources() {
  local suite=$1 found
  found=$(apt-get indextargets \
    --format '$(IDENTIFIER)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ARCHITECTURE)|$(SOURCESENTRY)' 2>/dev/null |
    while IFS='|' read -r identifier uri release component architecture entry; do
      [[ $identifier == Packages && $component == main && $architecture == amd64 ]] || continue
      [[ $release == "$suite" || $release == "$suite-updates" || $release == "$suite-security" ]] || continue
      echo "deb [$(signed_by "${entry%:*}")] $uri $release main"
    done | sort -u)
  if grep -q " $suite main$" <<<"$found"; then
    echo "$found"
  else
    echo "deb [$(signed_by)] http://deb.debian.org/debian $suite main"
    echo "deb [$(signed_by)] http://deb.debian.org/debian $suite-updates main"
    echo "deb [$(signed_by)] http://deb.debian.org/debian-security $suite-security main"
  fi
}

# The key file that a sources file names, or else Debian's own.
signed_by() {
  local file=${1:-/dev/null} key
  key=$(sed -nE 's/.*[Ss]igned-[Bb]y[:=] *(\/[^] ]+).*/\1/p' "$file" | head -n 1)
  echo "arch=amd64 signed-by=${key:-/usr/share/keyrings/debian-archive-keyring.gpg}"
}

# The host's settings of apt: proxies, certificates, and whether dates are checked.
apt_options() {
  apt-config dump --format '%F "%v";%n' Acquire |
    grep -E '^Acquire::(https?|Check-Valid-Until|Check-Date|Retries)\b' | grep -v ' "";$' || true
}

suite_of_host() {
  (
    . /etc/os-release
    if [[ ${ID:-} == debian && -n ${VERSION_CODENAME:-} ]]; then
      echo "$VERSION_CODENAME"
    else
      echo bookworm
    fi
  )
}
