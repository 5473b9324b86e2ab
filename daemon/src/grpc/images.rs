//! `ImageService`: images, which machines boot from.

use prost::Message as _;
use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, image_service_server::ImageService};

use super::{calls, convert};
use crate::{
    auth::Action,
    service::{Grantees, Service, TagChange},
};

/// The service.
#[derive(Debug)]
pub(super) struct Images(pub(super) Service);

#[async_trait]
impl ImageService for Images {
    async fn register_image(
        &self,
        request: Request<v1::RegisterImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let new = || convert::new_image(request);
        let new = calls::decoded(&self.0, &caller, Action::RegisterImage, new)?;
        calls::answer(self.0.register_image(&caller, new), convert::image).await
    }

    async fn get_image(
        &self,
        request: Request<v1::GetImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        calls::answer(self.0.image(&caller, &request.image), convert::image).await
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let request = convert::list_images(request);
        calls::answer(self.0.list_images(&caller, &request), |page| {
            let (images, next_page_token) = page.encode(convert::image, v1::Image::encoded_len);
            v1::ListImagesResponse {
                images,
                next_page_token,
            }
        })
        .await
    }

    async fn update_image(
        &self,
        request: Request<v1::UpdateImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let image = request.image.clone();
        let change = || convert::image_change(request);
        let change = calls::decoded(&self.0, &caller, Action::UpdateImage, change)?;
        let updated = self.0.update_image(&caller, &image, change);
        calls::answer(updated, convert::image).await
    }

    async fn tag_image(
        &self,
        request: Request<v1::TagImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let change = TagChange {
            set: request.set,
            remove: request.remove,
        };
        let tagged = self.0.tag_image(&caller, &request.image, change);
        calls::answer(tagged, convert::image).await
    }

    async fn share_image(
        &self,
        request: Request<v1::ShareImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let with = Grantees {
            accounts: request.accounts,
            everybody: request.everybody,
        };
        let shared = self.0.share_image(&caller, &request.image, with, false);
        calls::answer(shared, convert::image).await
    }

    async fn unshare_image(
        &self,
        request: Request<v1::UnshareImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let with = Grantees {
            accounts: request.accounts,
            everybody: request.everybody,
        };
        let unshared = self.0.share_image(&caller, &request.image, with, true);
        calls::answer(unshared, convert::image).await
    }

    async fn deregister_image(
        &self,
        request: Request<v1::DeregisterImageRequest>,
    ) -> Result<Response<v1::DeregisterImageResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let with_snapshots = request.delete_snapshots;
        let gone = self
            .0
            .deregister_image(&caller, &request.image, with_snapshots);
        calls::answer(gone, |gone| v1::DeregisterImageResponse {
            deregistered: Some(convert::image(gone.image)),
            snapshots: gone
                .snapshots
                .into_iter()
                .map(|(id, outcome)| v1::ImageSnapshotDeletion {
                    snapshot: id.to_string(),
                    outcome: Some(convert::deletion(outcome)),
                })
                .collect(),
        })
        .await
    }

    async fn give_image(
        &self,
        request: Request<v1::GiveImageRequest>,
    ) -> Result<Response<v1::Image>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let given = self.0.give_image(&caller, &request.image, &request.account);
        calls::answer(given, convert::image).await
    }
}
