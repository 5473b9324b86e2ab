//! `AccountService`: accounts, their tokens and their access keys.

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, account_service_server::AccountService};

use super::{calls, convert};
use crate::{auth::Action, service::Service};

/// The service.
#[derive(Debug)]
pub(super) struct AccountCalls(pub(super) Service);

#[async_trait]
impl AccountService for AccountCalls {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let new = || convert::new_account(request);
        let new = calls::decoded(&self.0, &caller, Action::CreateAccount, new)?;
        calls::answer(self.0.create_account(&caller, new), convert::account).await
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let found = self.0.account(&caller, &request.account);
        calls::answer(found, convert::account_use).await
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Result<Response<v1::ListAccountsResponse>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.list_accounts(&caller), |accounts| {
            v1::ListAccountsResponse {
                accounts: accounts.into_iter().map(convert::account).collect(),
            }
        })
        .await
    }

    async fn update_account(
        &self,
        request: Request<v1::UpdateAccountRequest>,
    ) -> Result<Response<v1::Account>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let account = request.account.clone();
        let change = || convert::account_change(request);
        let change = calls::decoded(&self.0, &caller, Action::UpdateAccount, change)?;
        let changed = self.0.update_account(&caller, &account, change);
        calls::answer(changed, convert::account).await
    }

    async fn delete_account(
        &self,
        request: Request<v1::DeleteAccountRequest>,
    ) -> Result<Response<v1::DeleteAccountResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let deleted = self.0.delete_account(&caller, &request.account);
        calls::answer(deleted, |deleted| v1::DeleteAccountResponse {
            deleted: Some(convert::account(deleted)),
        })
        .await
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.who_am_i(&caller), convert::who_am_i).await
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let new = || convert::new_token(request);
        let new = calls::decoded(&self.0, &caller, Action::CreateToken, new)?;
        let made = self.0.create_token(&caller, new);
        calls::answer(made, |(token, secret)| v1::CreateTokenResponse {
            token: Some(convert::token(token)),
            secret,
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let tokens = self.0.list_tokens(&caller, &request.account);
        calls::answer(tokens, |tokens| v1::ListTokensResponse {
            tokens: tokens.into_iter().map(convert::token).collect(),
        })
        .await
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let revoked = self.0.revoke_token(&caller, &request.token);
        calls::answer(revoked, |revoked| v1::RevokeTokenResponse {
            revoked: Some(convert::token(revoked)),
        })
        .await
    }

    async fn create_access_key(
        &self,
        request: Request<v1::CreateAccessKeyRequest>,
    ) -> Result<Response<v1::CreateAccessKeyResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let made = self.0.create_access_key(&caller, &request.account);
        calls::answer(made, |(access_key, secret)| v1::CreateAccessKeyResponse {
            access_key: Some(convert::access_key(access_key)),
            secret: secret.reveal(),
        })
        .await
    }

    async fn list_access_keys(
        &self,
        request: Request<v1::ListAccessKeysRequest>,
    ) -> Result<Response<v1::ListAccessKeysResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let keys = self.0.list_access_keys(&caller, &request.account);
        calls::answer(keys, |keys| v1::ListAccessKeysResponse {
            access_keys: keys.into_iter().map(convert::access_key).collect(),
        })
        .await
    }

    async fn revoke_access_key(
        &self,
        request: Request<v1::RevokeAccessKeyRequest>,
    ) -> Result<Response<v1::RevokeAccessKeyResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let revoked = self.0.revoke_access_key(&caller, &request.access_key);
        calls::answer(revoked, |revoked| v1::RevokeAccessKeyResponse {
            revoked: Some(convert::access_key(revoked)),
        })
        .await
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<v1::ReadAuditResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let account = request.account.clone();
        let query = || convert::audit_query(request);
        let query = calls::decoded(&self.0, &caller, Action::ReadAudit, query)?;
        let page = self.0.read_audit(&caller, &account, query);
        calls::answer(page, convert::audit_page).await
    }
}
