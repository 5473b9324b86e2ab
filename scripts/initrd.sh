# Makes the initial RAM disk of guests that only run a script. make-image sources it.
#
# Debian's own has udev and hundreds of modules. Without KVM it takes more than half of the time of
# such a guest's boot. This one has the drivers of the root disk, and programs of klibc to mount it.
#
# shellcheck shell=bash
# shellcheck disable=SC2016  # A script of the guest, which has its own variables.

# file_of IMAGE PATH FILE: copies a file out of an ext4 image.
file_of() {
  debugfs -R "dump $2 $3" "$1" >/dev/null 2>&1
  [[ -s $3 ]]
}

# names_in IMAGE DIRECTORY: lists a directory of an ext4 image.
names_in() {
  debugfs -R "ls -p $2" "$1" 2>/dev/null | cut -d / -f 6
}

# member NAME MODE [FILE]: prints a member of a cpio archive, in the format "newc".
member() {
  local name=$1 mode=$2 file=${3:-/dev/null} bytes
  bytes=$(wc -c <"$file")
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
    0 "$mode" 0 0 1 0 "$bytes" 0 0 0 0 $((${#name} + 1)) 0 "$name"
  # Names and contents begin at multiples of four.
  head -c $((-(110 + ${#name} + 1) & 3)) /dev/zero
  cat "$file"
  head -c $((-bytes & 3)) /dev/zero
}

# modules_of IMAGE DIRECTORY WORK MODULE...: prints paths of modules, each behind those it needs.
# One that is part of the kernel has none.
modules_of() {
  local image=$1 directory=$2 work=$3 module line
  shift 3
  file_of "$image" "$directory/modules.dep" "$work/modules.dep" || return
  for module in "$@"; do
    line=$(grep -E "/$module\.ko(\.[a-z]+)?:" "$work/modules.dep") || continue
    # The last one needs none of the others.
    tr -d : <<<"$line" | tr ' ' '\n' | tac
  done | awk 'NF && !seen[$0]++'
}

# small_initrd IMAGE WORK: prints an archive made from files of an image. Fails if one is missing.
small_initrd() {
  local image=$1 work=$2 release directory klibc program path name
  local modules=()
  release=$(names_in "$image" /usr/lib/modules | grep '^[0-9]') || return
  directory=/usr/lib/modules/$release
  klibc=$(names_in "$image" /usr/lib | grep '^klibc-.*\.so$') || return

  for name in bin dev lib modules disk; do member "$name" 0040755; done
  file_of "$image" "/usr/lib/$klibc" "$work/file" || return
  member "lib/$klibc" 0100755 "$work/file"
  for program in insmod ln mkdir mount run-init sh; do
    file_of "$image" "/usr/lib/klibc/bin/$program" "$work/file" || return
    member "bin/$program" 0100755 "$work/file"
  done
  modules_of "$image" "$directory" "$work" virtio_pci virtio_blk >"$work/modules" || return
  while read -r path; do
    name=$(basename "$path")
    file_of "$image" "$directory/$path" "$work/$name" || return
    if [[ $name == *.xz ]]; then xz -d "$work/$name" || return; fi
    name=${name%.xz}
    member "modules/$name" 0100644 "$work/$name"
    modules+=("$name")
  done <"$work/modules"

  # What Debian's own does: the same file systems are mounted, and the same program is started.
  {
    echo '#!/bin/sh'
    for name in "${modules[@]}"; do echo "insmod /modules/$name"; done
    cat <<'END'
mount -t devtmpfs -o nosuid,mode=0755 udev /dev
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mkdir /dev/pts
mount -t devpts -o noexec,nosuid,gid=5,mode=0620 devpts /dev/pts
mount -t ext4 -o rw /dev/vda /disk
mount -t sysfs -o nodev,noexec,nosuid sysfs /disk/sys
mount -t proc -o nodev,noexec,nosuid proc /disk/proc
mount -t tmpfs -o nodev,noexec,nosuid,size=10%,mode=0755 tmpfs /disk/run
mount -n -o move /dev /disk/dev
init=/sbin/init
read -r line </disk/proc/cmdline
for word in $line; do
  case $word in
    --) break ;;
    init=*) init=${word#init=} ;;
  esac
done
exec run-init /disk "$init" "$@" </disk/dev/console >/disk/dev/console 2>&1
END
  } >"$work/init"
  member init 0100755 "$work/init"
  member 'TRAILER!!!' 0
}
