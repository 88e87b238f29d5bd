{{/*
What is trusted: which certificates and keys there are, and which statement of the trust policy uses which.

Rules: a reference that leads nowhere is an error here, with what to write instead, never a resource that is found to be
wrong in the cluster. The names of trust stores are Ratify's: `cert-<n>`, counted over all statements.
What does not belong here: the resources themselves (store.yaml, verifiers.yaml, key-management-providers.yaml).

`fail` does not end a template in `helm lint`: what follows one must not depend on it.
*/}}

{{/* A certificate or key of the vault as JSON, without an empty version. */}}
{{- define "countersign.vaultObject" -}}
{{- if .version }}{{ dict "name" .name "version" .version | toJson }}{{ else }}{{ dict "name" .name | toJson }}{{ end }}
{{- end }}

{{/* The key vault as JSON: {enabled, vaultURI, tenantId, certificates, keys}, the deprecated values merged in. */}}
{{- define "countersign.keyVault" -}}
{{- $old := .Values.akvCertConfig | default dict }}
{{- $new := .Values.azurekeyvault }}
{{- $certificates := list }}
{{- $numbered := list (dict "name" $old.cert1Name "version" $old.cert1Version) (dict "name" $old.cert2Name "version" $old.cert2Version) }}
{{- range concat $numbered ($old.certificates | default list) ($new.certificates | default list) }}
{{- if .name }}
{{- $certificates = append $certificates (include "countersign.vaultObject" . | fromJson) }}
{{- end }}
{{- end }}
{{- $keys := list }}
{{- range $new.keys | default list }}
{{- $keys = append $keys (include "countersign.vaultObject" . | fromJson) }}
{{- end }}
{{- $enabled := or $new.enabled $old.enabled }}
{{- $vaultURI := $new.vaultURI | default $old.vaultURI | default "" }}
{{- $tenantId := $new.tenantId | default $old.tenantId | default "" }}
{{- if $enabled }}
{{- if not $vaultURI }}
{{- fail "azurekeyvault is enabled without a vault: set azurekeyvault.vaultURI to https://<name>.vault.azure.net" }}
{{- end }}
{{- if not $tenantId }}
{{- fail "azurekeyvault is enabled without a tenant: set azurekeyvault.tenantId, as `az account show --query tenantId --output tsv` prints it" }}
{{- end }}
{{- if not .Values.azureWorkloadIdentity.clientId }}
{{- fail "azurekeyvault is enabled without an identity: set azureWorkloadIdentity.clientId, as `az identity show --query clientId --output tsv` prints it" }}
{{- end }}
{{- if not (or $certificates $keys) }}
{{- fail "azurekeyvault is enabled and names nothing: set azurekeyvault.certificates[0].name or azurekeyvault.keys[0].name" }}
{{- end }}
{{- end }}
{{- dict "enabled" $enabled "vaultURI" $vaultURI "tenantId" $tenantId "certificates" $certificates "keys" $keys | toJson }}
{{- end }}

{{/* The certificates as JSON: {providers: [{name, value, pem}]}, in the order of Ratify's legacy list. */}}
{{- define "countersign.certificates" -}}
{{- $fullname := include "countersign.fullname" . }}
{{- $vault := include "countersign.keyVault" . | fromJson }}
{{- $providers := list }}
{{- if and $vault.enabled $vault.certificates }}
{{- $providers = append $providers (dict "name" "kmprovider-akv" "value" "azurekeyvault") }}
{{- end }}
{{- if .Values.notationCert }}
{{- if .Values.notationCerts }}
{{- fail "notationCert is deprecated and stands beside notationCerts: move it to notationCerts[0]" }}
{{- end }}
{{- $providers = append $providers (dict "name" (printf "%s-notation-inline-cert" $fullname) "value" "notationCert" "pem" .Values.notationCert) }}
{{- end }}
{{- range $index, $pem := .Values.notationCerts }}
{{- $providers = append $providers (dict "name" (printf "%s-notation-inline-cert-%d" $fullname $index) "value" (printf "notationCerts[%d]" $index) "pem" $pem) }}
{{- end }}
{{- range $providers }}
{{- if hasKey . "pem" }}
{{- if not (contains "-----BEGIN CERTIFICATE-----" .pem) }}
{{- fail (printf "%s is no PEM certificate: give the file's content, with --set-file %s=FILE" .value .value) }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "providers" $providers | toJson }}
{{- end }}

{{/*
The KeyManagementProvider that a reference of a trust policy means. Arguments: root, path (of the value), reference (what
follows the colon). Ratify's grammar: `azurekeyvault` or `notationCerts[<index>]` in any case; without an index the first.
*/}}
{{- define "countersign.trustReference" -}}
{{- $root := .root }}
{{- $reference := lower .reference }}
{{- if eq $reference "azurekeyvault" }}
{{- $vault := include "countersign.keyVault" $root | fromJson }}
{{- if not $vault.enabled }}
{{- fail (printf "%s refers to azurekeyvault, which is not enabled: set azurekeyvault.enabled=true, or refer to notationCerts[<index>]" .path) }}
{{- else if not $vault.certificates }}
{{- fail (printf "%s refers to azurekeyvault, which names no certificate: set azurekeyvault.certificates[0].name" .path) }}
{{- end }}
{{- "kmprovider-akv" }}
{{- else if regexMatch "^notationcerts\\[?[0-9]{0,4}\\]?$" $reference }}
{{- $index := regexFind "[0-9]+" $reference | default "0" | atoi }}
{{- $count := len $root.Values.notationCerts }}
{{- if ge $index $count }}
{{- fail (printf "%s refers to notationCerts[%d], which is out of range (%d given, counted from 0): add --set-file 'notationCerts[%d]=FILE', or correct the number" .path $index $count $index) }}
{{- end }}
{{- printf "%s-notation-inline-cert-%d" (include "countersign.fullname" $root) $index }}
{{- else }}
{{- fail (printf "%s: Unknown trust store reference: %s. Write azurekeyvault or notationCerts[<index>] after the colon" .path .reference) }}
{{- end }}
{{- end }}

{{/*
The trust policy as JSON:
  verify      whether there is anything to verify with
  stores      verificationCertStores of the Verifier, in Ratify's legacy form for one statement without trust stores
  statements  trustPolicies of the document
  used        names of the key providers in use
  twice       paths of references that repeat another one of their statement
*/}}
{{- define "countersign.trust" -}}
{{- $root := . }}
{{- $policies := .Values.notation.trustPolicies | default list }}
{{- $providers := (include "countersign.certificates" . | fromJson).providers }}
{{- $names := list }}
{{- range $providers }}{{ $names = append $names .name }}{{ end }}
{{- $stores := dict }}
{{- $statements := list }}
{{- $used := list }}
{{- $timestamping := list }}
{{- $twice := list }}
{{- $open := list }}
{{- $counter := 0 }}
{{- $seenNames := dict }}
{{- $seenScopes := dict }}
{{- if not $policies }}
{{- fail "notation.trustPolicies is empty: give a statement, or set notation.enabled=false and apply a Verifier of your own" }}
{{- end }}
{{- range $number, $policy := $policies }}
{{- $path := printf "notation.trustPolicies[%d]" $number }}
{{- $name := default (printf "trustPolicy-%d" $number) $policy.name }}
{{- $level := default "strict" $policy.level }}
{{- $listed := $policy.trustStores | default list }}
{{- $identities := $policy.trustedIdentities | default list }}
{{- if hasKey $seenNames $name }}
{{- fail (printf "%s.name is %q, as in notation.trustPolicies[%v]: names must differ" $path $name (get $seenNames $name)) }}
{{- end }}
{{- $_ := set $seenNames $name $number }}
{{- range $scope := $policy.registryScopes }}
{{- if hasKey $seenScopes $scope }}
{{- fail (printf "%s.registryScopes has %q, as notation.trustPolicies[%v] has: a repository follows one statement" $path $scope (get $seenScopes $scope)) }}
{{- end }}
{{- $_ := set $seenScopes $scope $number }}
{{- end }}
{{- $verification := dict "level" $level }}
{{- if $policy.override }}{{ $_ := set $verification "override" $policy.override }}{{ end }}
{{- if $policy.verifyTimestamp }}{{ $_ := set $verification "verifyTimestamp" $policy.verifyTimestamp }}{{ end }}
{{- $statement := dict "name" $name "registryScopes" ($policy.registryScopes | default list) "signatureVerification" $verification }}
{{- if eq $level "skip" }}
{{- if or $listed $identities $policy.override $policy.verifyTimestamp }}
{{- fail (printf "%s has level skip, which verifies nothing: leave trustStores, trustedIdentities, override and verifyTimestamp out" $path) }}
{{- end }}
{{- if has "*" ($policy.registryScopes | default list) }}
{{- fail (printf "%s has level skip for every repository: name the repositories in registryScopes" $path) }}
{{- end }}
{{- else }}
{{- if not $identities }}
{{- fail (printf "%s.trustedIdentities is empty: name who may sign, as \"x509.subject: C=.., ST=.., O=..\" (in --set, commas are written \\,), or \"*\" for everybody with a certificate of the trust stores" $path) }}
{{- end }}
{{- $own := list }}
{{- range $position, $reference := $listed }}
{{- $where := printf "%s.trustStores[%d]" $path $position }}
{{- $parts := splitn ":" 2 $reference }}
{{- if not (and (has $parts._0 (list "ca" "tsa" "signingAuthority")) (contains ":" $reference)) }}
{{- fail (printf "%s: Unknown certificate type: %s. Write ca:, tsa: or signingAuthority: and then azurekeyvault or notationCerts[<index>]" $where $parts._0) }}
{{- end }}
{{- $provider := include "countersign.trustReference" (dict "root" $root "path" $where "reference" (default "" $parts._1)) }}
{{- $store := printf "cert-%d" $counter }}
{{- $counter = add1 $counter }}
{{- $_ := set $stores $parts._0 (merge (dict $store (list $provider)) (get $stores $parts._0 | default dict)) }}
{{- $_ := set $statement "trustStores" (append (get $statement "trustStores" | default list) (printf "%s:%s" $parts._0 $store)) }}
{{- $used = append $used $provider }}
{{- if eq $parts._0 "tsa" }}{{ $timestamping = append $timestamping $provider }}{{ end }}
{{- $key := printf "%s:%s" $parts._0 $provider }}
{{- if has $key $own }}{{ $twice = append $twice (dict "path" $where "reference" $reference "statement" $path) }}{{ end }}
{{- $own = append $own $key }}
{{- end }}
{{- if not $listed }}
{{- $open = append $open $path }}
{{- $_ := set $statement "trustStores" (list "ca:certs") }}
{{- end }}
{{- $_ := set $statement "trustedIdentities" $identities }}
{{- end }}
{{- $statements = append $statements $statement }}
{{- end }}
{{- $verify := true }}
{{- if and (eq (len $policies) 1) $open }}
{{- $verify = gt (len $names) 0 }}
{{- $stores = dict "certs" $names }}
{{- $used = $names }}
{{- else if $open }}
{{- /* What another statement has for time-stamps alone is no CA of signers. */}}
{{- $rest := list }}
{{- range $names }}{{ if not (has . $timestamping) }}{{ $rest = append $rest . }}{{ end }}{{ end }}
{{- if not $rest }}
{{- fail (printf "%s.trustStores is empty and there is no certificate for it: give one with notationCerts or azurekeyvault" (first $open)) }}
{{- end }}
{{- $_ := set $stores "ca" (merge (dict "certs" $rest) (get $stores "ca" | default dict)) }}
{{- $used = concat $used $rest }}
{{- end }}
{{- dict "verify" $verify "stores" $stores "statements" $statements "used" (uniq $used) "twice" $twice | toJson }}
{{- end }}

{{/* Whether a Verifier of type notation is rendered: "true" or nothing. */}}
{{- define "countersign.verifiesNotation" -}}
{{- if .Values.notation.enabled }}
{{- if (include "countersign.trust" . | fromJson).verify }}true{{ end }}
{{- end }}
{{- end }}

{{/* Names of the providers of cosign keys as JSON: {names}. */}}
{{- define "countersign.cosignKeys" -}}
{{- $fullname := include "countersign.fullname" . }}
{{- $vault := include "countersign.keyVault" . | fromJson }}
{{- $names := list }}
{{- range $index, $key := .Values.cosignKeys }}
{{- $names = append $names (printf "%s-cosign-inline-key-%d" $fullname $index) }}
{{- end }}
{{- if and $vault.enabled $vault.keys }}{{ $names = append $names "kmprovider-akv" }}{{ end }}
{{- dict "names" $names | toJson }}
{{- end }}

{{/* How cosign signatures are verified: "keys", "keyless", "legacy", or nothing when there is nothing to verify with. */}}
{{- define "countersign.cosignMode" -}}
{{- if .Values.cosign.enabled }}
{{- $keys := (include "countersign.cosignKeys" . | fromJson).names }}
{{- $identity := or .Values.cosign.keyless.certificateIdentity .Values.cosign.keyless.certificateIdentityRegExp }}
{{- $issuer := or .Values.cosign.keyless.certificateOIDCIssuer .Values.cosign.keyless.certificateOIDCIssuerRegExp }}
{{- if and .Values.cosign.key (or $keys $identity $issuer) }}
{{- fail "cosign.key is deprecated and stands beside cosignKeys, azurekeyvault.keys or cosign.keyless: move it to cosignKeys[0]" }}
{{- end }}
{{- if and $keys (or $identity $issuer) }}
{{- fail "cosign keys and cosign.keyless stand side by side: a trust policy of cosign has one of them; set cosign.enabled=false and apply a Verifier of your own with two policies" }}
{{- end }}
{{- if or $identity $issuer }}
{{- with .Values.cosign.keyless }}
{{- if not (and $identity $issuer) }}
{{- fail "cosign.keyless needs who signed and who vouches: set certificateIdentity (or certificateIdentityRegExp) and certificateOIDCIssuer (or certificateOIDCIssuerRegExp)" }}
{{- end }}
{{- if or (and .certificateIdentity .certificateIdentityRegExp) (and .certificateOIDCIssuer .certificateOIDCIssuerRegExp) }}
{{- fail "cosign.keyless has a text and a regular expression for the same thing: leave one of them out" }}
{{- end }}
{{- end }}
{{- "keyless" }}
{{- else if $keys }}
{{- "keys" }}
{{- else if .Values.cosign.key }}
{{- "legacy" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Sources of registry credentials as JSON: {list}, in the order in which they are asked. */}}
{{- define "countersign.authProviders" -}}
{{- $list := list }}
{{- $on := .Values.oras.authProviders }}
{{- if $on.azureWorkloadIdentityEnabled }}
{{- $list = append $list (dict "name" "azureWorkloadIdentity" "clientID" .Values.azureWorkloadIdentity.clientId) }}
{{- if not .Values.azureWorkloadIdentity.clientId }}
{{- fail "oras.authProviders.azureWorkloadIdentityEnabled needs an identity: set azureWorkloadIdentity.clientId, as `az identity show --query clientId --output tsv` prints it" }}
{{- end }}
{{- end }}
{{- if $on.azureManagedIdentityEnabled }}
{{- $managed := dict "name" "azureManagedIdentity" }}
{{- with .Values.azureManagedIdentity.clientId }}{{ $_ := set $managed "clientID" . }}{{ end }}
{{- $list = append $list $managed }}
{{- end }}
{{- with $on.azureContainerRegistryEndpoints }}
{{- $endpoints := . }}
{{- range $list }}{{ $_ := set . "endpoints" $endpoints }}{{ end }}
{{- end }}
{{- if $on.k8secretsEnabled }}
{{- $secrets := dict "name" "k8Secrets" "serviceAccountName" (include "countersign.serviceAccountName" .) }}
{{- with $on.k8secrets }}{{ $_ := set $secrets "secrets" . }}{{ end }}
{{- $list = append $list $secrets }}
{{- end }}
{{- if $on.awsEcrBasicEnabled }}
{{- if $on.awsApiOverride.enabled }}
{{- if not (and $on.awsApiOverride.endpoint $on.awsApiOverride.region) }}
{{- fail "oras.authProviders.awsApiOverride is enabled and incomplete: set its endpoint and region" }}
{{- end }}
{{- end }}
{{- $list = append $list (dict "name" "awsEcrBasic") }}
{{- end }}
{{- if $on.googleWorkloadIdentityEnabled }}
{{- $list = append $list (dict "name" "googleWorkloadIdentity") }}
{{- end }}
{{- if $on.alibabacloudAcrBasicEnabled }}
{{- $alibaba := dict "name" "alibabacloudAcrBasic" }}
{{- with .Values.alibabacloudAcrConfig.defaultInstanceId }}{{ $_ := set $alibaba "defaultInstanceId" . }}{{ end }}
{{- with .Values.alibabacloudAcrConfig.acrInstancesConfig }}{{ $_ := set $alibaba "acrInstancesConfig" . }}{{ end }}
{{- $list = append $list $alibaba }}
{{- end }}
{{- if and $list (or .Values.dockerConfig .Values.registryCredsSecret) }}
{{- $list = prepend $list (dict "name" "dockerConfig" "configPath" "/usr/local/docker/config.json") }}
{{- end }}
{{- dict "list" $list | toJson }}
{{- end }}
