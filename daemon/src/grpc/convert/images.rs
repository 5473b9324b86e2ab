//! Images.

use varve_proto::v1::{self, image_device::Source};
use varve_store::{
    Architecture, BlockDevice, BootMode, DeviceSource, Image, ImageChange, ImageState, Platform,
    Protection,
};

use super::{timestamp, unix_ns};
use crate::service::{
    DeviceContent, DeviceRequest, Error, ImageFilter, ImageListRequest, ImageRequest, Result,
};

pub(in crate::grpc) fn image(Image { record, state }: Image) -> v1::Image {
    let (state, state_reason) = match state {
        ImageState::Available => (v1::ImageState::Available, String::new()),
        ImageState::Pending => (v1::ImageState::Pending, String::new()),
        ImageState::Failed { reason } => (v1::ImageState::Failed, reason),
        ImageState::Disabled => (v1::ImageState::Disabled, String::new()),
    };
    let architecture = match record.architecture {
        Architecture::X86_64 => v1::ImageArchitecture::X8664,
        Architecture::Arm64 => v1::ImageArchitecture::Arm64,
        Architecture::I386 => v1::ImageArchitecture::I386,
    };
    let platform = match record.platform {
        Platform::Linux => v1::ImagePlatform::Linux,
        Platform::Windows => v1::ImagePlatform::Windows,
    };
    let boot_mode = match record.boot_mode {
        None => v1::ImageBootMode::Unspecified,
        Some(BootMode::Bios) => v1::ImageBootMode::Bios,
        Some(BootMode::Uefi) => v1::ImageBootMode::Uefi,
        Some(BootMode::UefiPreferred) => v1::ImageBootMode::UefiPreferred,
    };
    let (protection, protected_until) = match record.protection {
        Protection::Off => (v1::ImageProtection::Off, None),
        Protection::On => (v1::ImageProtection::On, None),
        Protection::WithCooldown => (v1::ImageProtection::WithCooldown, None),
        Protection::Cooldown { until_ns } => {
            (v1::ImageProtection::Cooldown, Some(timestamp(until_ns)))
        }
    };
    let accounts = record.sharing.accounts.iter();
    v1::Image {
        id: record.id.to_string(),
        name: record.name,
        description: record.description,
        owner: record.owner.to_string(),
        state: state.into(),
        state_reason,
        architecture: architecture.into(),
        platform: platform.into(),
        boot_mode: boot_mode.into(),
        root_device: record.root_device,
        devices: record.devices.into_iter().map(device).collect(),
        created_at: Some(timestamp(record.created_at_ns)),
        deprecated_at: record.deprecated_at_ns.map(timestamp),
        protection: protection.into(),
        protected_until,
        tags: record.tags,
        shared_accounts: accounts.map(ToString::to_string).collect(),
        shared_with_everybody: record.sharing.everybody,
    }
}

fn device(device: BlockDevice) -> v1::ImageDevice {
    v1::ImageDevice {
        name: device.name,
        size_bytes: device.source.size_bytes().unwrap_or_default(),
        delete_on_termination: Some(device.delete_on_termination),
        source: Some(match device.source {
            DeviceSource::Snapshot { id, .. } => Source::Snapshot(id.to_string()),
            DeviceSource::Empty { .. } => Source::Empty(true),
            DeviceSource::Ephemeral { number } => Source::Ephemeral(number),
        }),
    }
}

pub(in crate::grpc) fn new_image(request: v1::RegisterImageRequest) -> Result<ImageRequest> {
    let id = match &*request.id {
        "" => None,
        id => {
            let id = id.parse();
            Some(id.map_err(|error| Error::field("id", format!("{error}")))?)
        }
    };
    let unknown = |field, what, number: i32| Error::field(field, format!("{number} is no {what}"));
    let architecture = match request.architecture() {
        v1::ImageArchitecture::Unspecified if request.architecture != 0 => {
            return Err(unknown(
                "architecture",
                "architecture",
                request.architecture,
            ));
        }
        v1::ImageArchitecture::Unspecified | v1::ImageArchitecture::X8664 => Architecture::X86_64,
        v1::ImageArchitecture::Arm64 => Architecture::Arm64,
        v1::ImageArchitecture::I386 => Architecture::I386,
    };
    let platform = match request.platform() {
        v1::ImagePlatform::Unspecified if request.platform != 0 => {
            return Err(unknown("platform", "platform", request.platform));
        }
        v1::ImagePlatform::Unspecified | v1::ImagePlatform::Linux => Platform::Linux,
        v1::ImagePlatform::Windows => Platform::Windows,
    };
    let boot_mode = match request.boot_mode() {
        v1::ImageBootMode::Unspecified if request.boot_mode != 0 => {
            return Err(unknown("boot_mode", "boot mode", request.boot_mode));
        }
        v1::ImageBootMode::Unspecified => None,
        v1::ImageBootMode::Bios => Some(BootMode::Bios),
        v1::ImageBootMode::Uefi => Some(BootMode::Uefi),
        v1::ImageBootMode::UefiPreferred => Some(BootMode::UefiPreferred),
    };
    let devices = request.devices.into_iter().map(new_device);
    Ok(ImageRequest {
        id,
        architecture,
        platform,
        boot_mode,
        devices: devices.collect::<Result<_>>()?,
        name: request.name,
        description: request.description,
        root_device: request.root_device,
        tags: request.tags,
    })
}

fn new_device(device: v1::ImageDevice) -> Result<DeviceRequest> {
    let source = match device.source {
        Some(Source::Snapshot(key)) => DeviceContent::Snapshot(key),
        Some(Source::Empty(true)) => DeviceContent::Empty,
        Some(Source::Ephemeral(number)) => DeviceContent::Ephemeral(number),
        Some(Source::Empty(false)) | None => {
            let problem = format!("device {:?} has no source", device.name);
            return Err(Error::field("devices", problem));
        }
    };
    Ok(DeviceRequest {
        source,
        name: device.name,
        size_bytes: (device.size_bytes != 0).then_some(device.size_bytes),
        delete_on_termination: device.delete_on_termination,
    })
}

pub(in crate::grpc) fn list_images(request: v1::ListImagesRequest) -> ImageListRequest {
    ImageListRequest {
        owners: request.owners,
        executable_by: request.executable_by,
        filters: request.filters.into_iter().map(image_filter).collect(),
        include_deprecated: request.include_deprecated,
        include_disabled: request.include_disabled,
        page_size: request.page_size,
        page_token: request.page_token,
    }
}

fn image_filter(filter: v1::ImageFilter) -> ImageFilter {
    ImageFilter {
        name: filter.name,
        values: filter.values,
    }
}

pub(in crate::grpc) fn image_change(request: v1::UpdateImageRequest) -> Result<ImageChange> {
    let protection = match request.protection() {
        v1::ImageProtection::Unspecified if request.protection == 0 => None,
        v1::ImageProtection::Off => Some(Protection::Off),
        v1::ImageProtection::On => Some(Protection::On),
        v1::ImageProtection::WithCooldown => Some(Protection::WithCooldown),
        v1::ImageProtection::Unspecified | v1::ImageProtection::Cooldown => {
            let problem = format!("{} is no protection to set", request.protection);
            return Err(Error::field("protection", problem));
        }
    };
    let deprecated_at_ns = match (request.deprecated_at, request.never_deprecated) {
        (Some(_), true) => {
            let problem = "a time and never_deprecated are both set";
            return Err(Error::field("deprecated_at", problem));
        }
        (None, true) => Some(None),
        (None, false) => None,
        (at, false) => Some(Some(unix_ns("deprecated_at", at)?)),
    };
    Ok(ImageChange {
        description: request.description,
        deprecated_at_ns,
        is_disabled: request.disabled,
        protection,
    })
}
