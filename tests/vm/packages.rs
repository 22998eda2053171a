//! The packages on a host that has never seen rowd: installed, upgraded under load, refused to go, gone.
//!
//! Absent: a distribution that is made of RPM packages. Debian's rpm runs the scripts and keeps the list of files as
//! any; that the packages exist which ours requires, it cannot know.

use std::path::{Path, PathBuf};

use rowd_tests::tool;
use rowd_tests::vm::{Spec, Vm};
use tempfile::TempDir;

/// A kind of package, and how a host takes and loses one.
struct Format {
    /// The target that packs programs which are built already, as `make deb` and `make rpm` do.
    target: &'static str,
    /// Where below the target directory, and what names revision `N`.
    made: (&'static str, fn(u32) -> String),
    /// Fast rather than small.
    options: &'static str,
    upgrade: &'static str,
    remove: &'static str,
    /// Says nothing where every file is as the package brought it, but for the configuration.
    verify: &'static str,
    /// Prints the version and the revision.
    query: &'static str,
}

const DEB: Format = Format {
    target: "deb-files",
    made: ("debian", |revision| format!("-{revision}_")),
    options: "DEB_OPTIONS=--fast",
    upgrade: "dpkg -i /srv/2.package",
    remove: "dpkg -r rowd",
    verify: "dpkg-query -W -f '${db:Status-Status}' rowd | grep -qx installed && { dpkg --verify rowd || true; }",
    query: "dpkg-query -W rowd",
};

/// What rowd requires is there, but came by other packages.
const RPM: Format = Format {
    target: "rpm-files",
    made: ("generate-rpm", |revision| format!("-{revision}.")),
    options: "RPM_OPTIONS=--payload-compress=none",
    upgrade: "rpm -U --nodeps /srv/2.package",
    remove: "rpm -e rowd",
    verify: "rpm -q rowd > /dev/null && { rpm -V --nodeps rowd || true; }",
    query: "rpm -q rowd",
};

impl Format {
    fn package(&self, target: &Path, revision: u32) -> PathBuf {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let programs = tool::built("rowd");
        let mut make = tool::command("make");
        // A make that runs the tests passes on its own options otherwise.
        for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PREFIX", "DESTDIR"] {
            make.env_remove(variable);
        }
        make.env("CARGO_TARGET_DIR", target).arg("-C").arg(repository);
        make.args(["-s", self.target, self.options, &format!("REVISION={revision}")]);
        make.arg(format!("PROGRAMS={}", programs.parent().unwrap().display()));
        tool::finish(&mut make).ok();
        let (dir, part) = (self.made.0, (self.made.1)(revision));
        let made = std::fs::read_dir(target.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        let mut made = made.filter(|path| path.to_string_lossy().contains(&part));
        made.next().expect("a package")
    }

    /// A machine with two revisions of the package, of which it has installed neither.
    fn machine(&self) -> Vm {
        let target = TempDir::with_prefix("rowd-package-").unwrap();
        // A directory for each: cargo-deb removes older packages.
        let [first, second] = [1, 2]
            .map(|revision| self.package(&target.path().join(revision.to_string()), revision));
        let spec = Spec::default().bare().file(&first, "/srv/1.package");
        spec.file(&second, "/srv/2.package").boot()
    }

    /// Nothing of it is missing or changed, and the service runs.
    fn is_whole(&self, vm: &mut Vm) {
        let unchanged = r#"! grep -v -e /etc/rowd/rowd.toml -e '^$' <<< "$changed""#;
        let verify = self.verify;
        vm.sh(&format!("systemctl is-active rowd && changed=$({verify}) && {unchanged}")).ok();
    }
}

/// Promise: the package brings a service that works, an upgrade is no I/O error for a mounted disk, nothing goes
/// that is in use, and disks outlive the package.
#[test]
fn a_package_is_installed_upgraded_under_load_and_removed() {
    let mut vm = DEB.machine();
    into_a_host_that_does_not_run(&mut vm);
    vm.sh("! command -v rowd && dpkg -i /srv/1.package").ok();
    vm.sh("test -s /usr/share/zsh/vendor-completions/_rowctl").ok();
    in_use(&DEB, &mut vm);
    upgraded_under_load(&DEB, &mut vm);
    not_from_under_its_disks(&DEB, &mut vm);
    away_and_back(&mut vm);
    vm.power_off();
}

/// Promise: the same of the other package; as such packages do, it starts nothing when it is new.
#[test]
fn an_rpm_package_is_installed_upgraded_under_load_and_removed() {
    let mut vm = RPM.machine();
    vm.sh("! command -v rowd && rpm -i --nodeps /srv/1.package").ok();
    vm.sh("[[ $(systemctl is-active rowd) == inactive ]] && systemctl enable --now rowd").ok();
    vm.sh("test -s /usr/share/zsh/site-functions/_rowctl").ok();
    in_use(&RPM, &mut vm);
    upgraded_under_load(&RPM, &mut vm);
    not_from_under_its_disks(&RPM, &mut vm);
    vm.sh("rpm -e rowd").ok().says(&["/var/lib/rowd were not removed"]);
    vm.sh("[[ $(systemctl is-active rowd) != active ]]").ok();
    vm.sh("test -s /var/lib/rowd/pool && [[ ! -e /usr/sbin/rowd && ! -e /usr/lib/rowd && ! -e /usr/share/doc/rowd ]]").ok();
    vm.sh("grep -q administrator /etc/rowd/rowd.toml.rpmsave").ok();
    vm.sh("test ! -L /etc/systemd/system/multi-user.target.wants/rowd.service").ok();
    vm.power_off();
}

/// As image builders do it: a root directory without systemd, udev or mounts.
fn into_a_host_that_does_not_run(vm: &mut Vm) {
    vm.sh("
        mkdir /image && mount -t tmpfs image /image
        mkdir /image/{upper,work,tree}
        mount -t overlay -o lowerdir=/,upperdir=/image/upper,workdir=/image/work image /image/tree
        chroot /image/tree dpkg -i /srv/1.package
        test -L /image/tree/etc/systemd/system/multi-user.target.wants/rowd.service
        grep -q ^rowd: /image/tree/etc/group
        chroot /image/tree dpkg -P rowd
        [[ ! -e /image/tree/etc/rowd && ! -e /image/tree/usr/sbin/rowd ]]
        [[ ! -L /image/tree/etc/systemd/system/multi-user.target.wants/rowd.service ]]
        umount /image/tree /image
    ")
        .ok();
}

/// Installed, it is whole and works; a disk is mounted and the configuration changed.
fn in_use(format: &Format, vm: &mut Vm) {
    vm.sh("systemctl is-enabled rowd && systemctl is-active rowd && getent group rowd").ok();
    vm.sh("
        for page in man1/rowctl man1/rowctl-disk-create man5/rowd.toml man8/rowd; do
            zcat /usr/share/man/$page.*.gz | grep -q '^.TH'
        done
        test -s /usr/share/fish/vendor_completions.d/rowctl.fish
        set +u
        . /usr/share/bash-completion/completions/rowctl
        complete -p rowctl
    ")
        .ok();
    // What an installation puts there is what its list says, and whole.
    vm.sh(&format!("changed=$({}) && test -z \"$changed\"", format.verify)).ok();
    vm.sh("
        rowctl disk create d1 --size 256MiB && rowctl disk attach d1
        mkfs.ext4 -q /dev/disk/by-id/rowd-d1 && mount /dev/disk/by-id/rowd-d1 /mnt
        cp /etc/os-release /mnt/precious && sync -f /mnt
        echo '# of the administrator' >> /etc/rowd/rowd.toml
    ")
        .ok();
}

fn upgraded_under_load(format: &Format, vm: &mut Vm) {
    let pid = |vm: &mut Vm| vm.sh("systemctl show -P MainPID rowd").ok().stdout;
    let before = pid(vm);
    vm.sh(&format!("{}\n{}\n{}", r#"
        systemd-run --quiet --unit=load fio --name=load --directory=/mnt --size=16M --rw=randrw --bs=4k \
            --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime=600 --verify=crc32c \
            --verify_fatal=1 --verify_backlog=64 --output=/tmp/fio.json --output-format=json
        written() { awk '{print $7}' /sys/block/nbd0/stat; }
        more() { from=$(written); until (($(written) > from + 1000)); do systemctl is-active -q load; done; }
        more"#, format.upgrade, "
        more
        systemctl kill --signal=INT load
    "))
    .ok();
    assert_ne!(before, pid(vm), "the upgrade left the old daemon running");
    vm.until("the end of the load", "! systemctl is-active -q load && test -s /tmp/fio.json");
    // Above it stands that it was interrupted.
    let report = vm.sh("sed -n '/^{/,$p' /tmp/fio.json").ok().json();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{report}");
    assert!(job["write"]["total_ios"].as_u64() > Some(100), "{report}");
    vm.sh("! dmesg | grep -iE 'I/O error|Buffer I/O' && cmp /etc/os-release /mnt/precious").ok();
    vm.sh(format.query).ok().says(&["-2"]);
    vm.sh("grep -q administrator /etc/rowd/rowd.toml").ok();
}

/// A refused removal changes nothing.
fn not_from_under_its_disks(format: &Format, vm: &mut Vm) {
    let remove = format.remove;
    vm.sh(remove).fails_with(1).says(&["/dev/nbd0 (d1)", "rowctl disk detach"]);
    format.is_whole(vm);
    // A stopped daemon does not make a mounted disk unused.
    vm.sh(&format!("systemctl stop rowd; {remove}")).fails_with(1).says(&["/dev/nbd0 (d1)"]);
    vm.sh("systemctl start rowd && echo more > /mnt/more && sync -f /mnt && umount /mnt").ok();
    vm.sh("rowctl disk detach d1 && nbd-client -unix /run/rowd/nbd.sock /dev/nbd9 -N d1").ok();
    vm.sh(remove).fails_with(1).says(&["client", "systemctl stop rowd"]);
    format.is_whole(vm);
    vm.sh("nbd-client -d /dev/nbd9").ok();
    vm.until("the end of its connection", "rowctl -o json status | grep '\"clients\": *0'");
}

fn away_and_back(vm: &mut Vm) {
    vm.sh("dpkg -r rowd").ok();
    vm.sh("test ! -e /usr/sbin/rowd && test -e /etc/rowd/rowd.toml").ok();
    vm.sh("[[ $(systemctl is-active rowd) != active ]]").ok();
    vm.sh("dpkg -i /srv/2.package && systemctl is-active rowd").ok();
    vm.sh("
        rowctl disk attach d1 && mount /dev/disk/by-id/rowd-d1 /mnt
        cmp /etc/os-release /mnt/precious && test -s /mnt/more
        umount /mnt && rowctl disk detach d1
    ")
        .ok();
    vm.sh("dpkg -P rowd").ok().says(&["/var/lib/rowd were not removed"]);
    vm.sh("test -s /var/lib/rowd/pool && test ! -e /etc/rowd && test ! -e /run/rowd").ok();
    vm.sh("test ! -L /etc/systemd/system/multi-user.target.wants/rowd.service").ok();
}
