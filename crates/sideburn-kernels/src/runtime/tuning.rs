//! Where it is kept which kernels were the fastest.

use std::env::current_dir;
use std::path::{Path, PathBuf};
use std::sync::Once;

use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};

/// Has what is tuned on GPUs kept in `sideburn` in the user's cache folder, for processes to come.
///
/// To be called before the first GPU is used. It changes nothing after that, where CubeCL is configured, by the program
/// or by a file in the working directory or above, and where there is no cache folder. Environment variables of CubeCL
/// take precedence. A folder that cannot be written to keeps nothing.
pub fn keep_tuning() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(folder) = cache_folder() else { return };
        if current_dir().is_ok_and(|directory| is_configured(&directory)) {
            return;
        }
        // Compiled kernels are not kept (`compilation.cache`): they are found again by the linker's build id, which not
        // every linker writes, and without one they would outlive the source that they were compiled from.
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory(folder);
        CubeClRuntimeConfig::try_set(config.override_from_env());
    });
}

fn cache_folder() -> Option<PathBuf> {
    choose_native_strategy().ok().map(|folders| folders.cache_dir().join("sideburn"))
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
