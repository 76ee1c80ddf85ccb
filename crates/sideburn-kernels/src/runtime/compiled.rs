//! Where compiled kernels are kept.

use std::env::current_dir;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::SystemTime;

use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use burn_cubecl::cubecl::records::RecordLevel;
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};

/// How many programs have their kernels kept, the last used ones.
const PROGRAMS: usize = 8;

/// How a database of SQLite begins.
const HEADER: &[u8] = b"SQLite format 3\0";

/// Has the kernels that are compiled for CUDA kept in `sideburn` in the user's cache folder, for processes to come. Each
/// program has a file of its own there, named by the build id that the linker gave it: another build compiles anew. A
/// program without a build id keeps nothing. Other backends leave this to the driver, which keeps what it compiles.
///
/// To be called before the first GPU is used. It changes nothing after that, where CubeCL is configured, by the program
/// or by a file in the working directory or above, and where there is no cache folder. Environment variables of CubeCL
/// take precedence. A folder that cannot be written to keeps nothing, and a file that is no database is removed.
pub fn keep_kernels() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (Some(folder), Some(program)) = (cache_folder(), program()) else { return };
        if current_dir().is_ok_and(|directory| is_configured(&directory)) {
            return;
        }
        tidy(&folder, &program);
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory(folder);
        config.environment.name = program;
        config.environment.records.level = RecordLevel::Off;
        config.compilation.cache = true;
        CubeClRuntimeConfig::try_set(config.override_from_env());
    });
}

fn cache_folder() -> Option<PathBuf> {
    choose_native_strategy().ok().map(|folders| folders.cache_dir().join("sideburn"))
}

/// A name for exactly this build of the program.
fn program() -> Option<String> {
    let id = buildid::build_id().filter(|id| !id.is_empty())?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes what cannot be opened as this program's database, and those of programs that were not run for the longest
/// time. What another process has open stays with it.
fn tidy(folder: &Path, program: &str) {
    let own = folder.join(format!("{program}.db"));
    let mut header = [0; HEADER.len()];
    let is_foreign = |mut file: File| {
        file.metadata().is_ok_and(|data| data.len() > 0) && (file.read_exact(&mut header).is_err() || header != HEADER)
    };
    if File::open(&own).is_ok_and(is_foreign) {
        remove(&own);
    }
    let is_database = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "db") && *path != own;
    let used = |path: &PathBuf| path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_database).collect();
    others.sort_by_cached_key(used);
    let count = others.len().saturating_sub(PROGRAMS - 1);
    others[..count].iter().for_each(|path| remove(path));
}

/// Removes a database with what lies beside it. What cannot be removed stays.
fn remove(database: &Path) {
    let Some(name) = database.file_name().and_then(|name| name.to_str()) else { return };
    let beside = ["", "-wal", "-shm", "-tshm"].map(|ending| database.with_file_name(format!("{name}{ending}")));
    beside.iter().for_each(|path| drop(fs::remove_file(path)));
}

/// Whether CubeCL finds a file for it where it looks.
fn is_configured(directory: &Path) -> bool {
    type Config = CubeClRuntimeConfig;
    let file = |path: PathBuf| Config::from_file_path(path).is_ok();
    let section = |path: PathBuf, section| Config::from_section_file_path(path, section).is_ok();
    directory.ancestors().any(|directory| {
        Config::file_names().iter().any(|name| file(directory.join(name)))
            || Config::section_file_names().iter().any(|(name, part)| section(directory.join(name), part))
    })
}
